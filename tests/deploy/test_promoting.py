"""A promotion put together: what it does where another one comes in between, and what of the shadow ends it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from consumers.kafka_connection import BrokersUnreachable, ConnectingStopped, hearing
from consumers.record_source import LogTruncated, ReadingStopped, SourceUnavailable
from deploy.promoting import PromotionReport, promote
from deploy.shadow import pair_scores
from model_store.promotion import Verdict
from model_store.promotion_history import promotions_of
from model_store.registry import InMemoryRegistry, RegisteredVersion
from pipeline.user_error import UserError
from tests.deploy.promotion_world import settings_with
from tests.model_store.tiny_servable import request

PASSED = Verdict(passed=True, checks=(), reasons=("good",))
REFUSED = Verdict(passed=False, checks=(), reasons=("worse",))


class Bench:
    """Three versions, of which the first is the champion; judging another one takes its time."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.registry = InMemoryRegistry()
        for number in (1, 2, 3):
            self.registry.register(request(folder / "servable", number))
        self.registry.set_alias("pets", "champion", 1)
        self.judged: list[tuple[int | None, int]] = []
        self.verdicts: dict[int | None, Verdict] = {}  # by champion; else it passes
        self.meanwhile: Iterator[int] = iter(())  # who becomes the champion while the next one is judged
        self.kinds: list[str] = []
        monkeypatch.setattr("deploy.promoting.judge", self._judge)
        monkeypatch.setattr("deploy.promoting.tell", lambda _, message: self.kinds.append(message.key.decode()))

    def promote(self, **more: Any) -> PromotionReport:
        """Version 3."""
        given = {"by": "ada", "force": False, "state": None, "settings": settings_with()}
        return promote(self.registry, "pets", 3, **{**given, **more})

    def champion(self) -> int | None:
        champion = self.registry.alias("pets", "champion")
        return None if champion is None else champion.version

    def _judge(
        self, _registry: object, champion: RegisteredVersion | None, version: RegisteredVersion, **_: Any
    ) -> Verdict:
        number = None if champion is None else champion.version
        self.judged.append((number, version.version))
        for another in self.meanwhile:
            self.registry.set_alias("pets", "champion", another)
            break
        return self.verdicts.get(number, PASSED)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_a_champion_that_came_meanwhile_is_one_to_judge_against(bench: Bench) -> None:
    bench.meanwhile = iter([2])
    report = bench.promote()
    assert bench.judged == [(1, 3), (2, 3)]
    assert (report.champion, report.promoted, bench.champion()) == (2, True, 3)
    version = bench.registry.find("pets", 3)
    assert version is not None
    assert [promotion.from_version for promotion in promotions_of(version)] == [2]


def test_what_was_said_of_the_champion_before_refuses_nobody_and_lets_nobody_pass(bench: Bench) -> None:
    bench.verdicts, bench.meanwhile = {2: REFUSED}, iter([2])
    report = bench.promote()
    assert (report.champion, report.verdict, bench.champion()) == (2, REFUSED, 2)
    bench.registry.set_alias("pets", "champion", 1)
    bench.verdicts, bench.meanwhile = {1: REFUSED}, iter([2])
    assert bench.promote().promoted


@pytest.mark.parametrize("force", [False, True])
def test_champions_that_change_without_an_end_are_told_of_and_may_be_tried_again(bench: Bench, force: bool) -> None:
    bench.meanwhile = iter([2, 1, 2])
    report = bench.promote(force=force)
    assert (len(bench.judged), report.refused, bench.champion()) == (3, True, 2)
    assert report.verdict is not None
    assert report.verdict.may_pass_later
    assert report.verdict.reasons[0].startswith("the champion changed 3 times while this version was judged")
    assert bench.promote().promoted


def test_one_that_somebody_else_promotes_meanwhile_is_the_champion_already(bench: Bench) -> None:
    bench.meanwhile = iter([3])
    report = bench.promote()
    assert (report.refused, report.promoted, report.moved, bench.champion()) == (False, False, None, 3)


class ShadowTopics:
    """In place of the reader of the shadow's topics: ends as it is told to."""

    def __init__(self, ends: Callable[[], Exception]) -> None:
        self._ends = ends
        self.closed = 0
        self.heard: threading.Event | None = None
        self.most_back: int | None = None

    def open(self, _settings: object, _stream: str, *, most_back: int | None = None) -> ShadowTopics:
        self.most_back = most_back
        return self

    def read_to_end(self, stop: threading.Event | None = None) -> None:
        self.heard = stop
        raise self._ends()

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize(
    ("error", "without_force"),
    [
        (SourceUnavailable("away"), SourceUnavailable),
        (BrokersUnreachable("away"), SourceUnavailable),
        (UserError("this user may not Read: add the ACL"), UserError),
        (LogTruncated("the topic was deleted"), LogTruncated),
    ],
)
def test_with_force_a_shadow_that_cannot_be_read_says_nothing(
    error: Exception, without_force: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = ShadowTopics(lambda: error)
    monkeypatch.setattr("deploy.shadow.shadow_reader", topics.open)
    assert pair_scores(settings_with(), "pets", may_be_away=True)(1, 2) is None
    with pytest.raises(without_force):
        pair_scores(settings_with(), "pets")(1, 2)
    assert topics.closed == 2


@pytest.mark.parametrize("error", [ReadingStopped("stopped"), ConnectingStopped("stopped")])
def test_the_shadow_is_read_back_a_bounded_way_and_hears_the_stop(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics, stop = ShadowTopics(lambda: error), threading.Event()
    monkeypatch.setattr("deploy.shadow.shadow_reader", topics.open)
    with hearing(stop), pytest.raises(type(error), match=r"^stopped$"):
        pair_scores(settings_with(), "pets", may_be_away=True)(1, 2)
    assert (topics.heard, topics.most_back) == (stop, 400_000)
