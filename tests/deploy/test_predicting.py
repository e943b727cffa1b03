"""The threads beside a predictor's loop live as long as it does."""

from __future__ import annotations

import io
import json
import threading
import time

import pytest

from deploy import predicting
from deploy.predictor_console import PredictorConsole
from tests.waiting import wait_until

DEADLINE_SECONDS = 30.0


def test_a_thread_that_fails_is_told_of_and_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicting, "_AGAIN_SECONDS", 0.02)
    over, out, tries = threading.Event(), io.StringIO(), list[float]()

    def run() -> None:
        tries.append(time.monotonic())
        if len(tries) < 3:
            raise KeyError("of\ntwo lines")
        over.wait()

    end = predicting._thread("shadow", run, over=over, warned=PredictorConsole(out, as_json=True).waits)
    wait_until(lambda: len(tries) == 3)
    told = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["event"] for line in told] == ["waiting", "waiting"]
    assert told[0]["why"].startswith(
        "the thread shadow failed and begins again in 0.02 s; where that goes on, report it"
    )
    assert "KeyError" in told[0]["why"]
    over.set()
    end()
    assert "shadow" not in {thread.name for thread in threading.enumerate()}
    assert len(tries) == 3


def test_between_two_tries_the_end_is_heard_at_once() -> None:
    over, told = threading.Event(), list[str]()

    def run() -> None:
        raise KeyError("x")

    end = predicting._thread("model-watch", run, over=over, warned=told.append)
    wait_until(lambda: bool(told))
    began = time.monotonic()
    over.set()
    end()
    assert time.monotonic() - began < 3, "it does not sleep to its end"
    assert len(told) == 1


def test_what_fails_while_it_ends_is_not_told() -> None:
    over, told = threading.Event(), list[str]()

    def run() -> None:
        over.wait()
        raise KeyError("its connection was closed")

    end = predicting._thread("promotions", run, over=over, warned=told.append)
    over.set()
    end()
    assert told == []


def test_the_console_says_what_it_waits_for_and_that_it_is_over() -> None:
    out = io.StringIO()
    console = PredictorConsole(out, as_json=False)
    console.waits("MLflow is away")
    console.well()
    assert out.getvalue() == "warning: MLflow is away\nMLflow answers, and what the alias points to is here again\n"
