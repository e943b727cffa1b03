"""What runs in a container beside `palimpsest`: the health check, and what holds an end that no restart mends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from consumers.metrics_server import MetricsServer
from deploy.exit_codes import BROKERS_AWAY, DIVERGED, FENCED, REFUSED
from deploy.image.healthy import unhealthy

_SECONDS = 20


@contextmanager
def _server(last_turn: float) -> Iterator[int]:
    server = MetricsServer(
        registry=CollectorRegistry(),
        host="127.0.0.1",
        port=0,
        last_turn=lambda: last_turn,
        ready=lambda: False,
        stale_after_seconds=300,
    )
    with server:
        yield int(server.url.split(":")[2].partition("/")[0])


def test_it_is_healthy_where_one_of_them_lives() -> None:
    with _server(time.monotonic()) as port:
        assert unhealthy([1, port]) is None
    assert unhealthy([port]) == f"nothing listens on {port}"


def test_no_proxy_is_asked_about_this_container() -> None:
    with _server(time.monotonic()) as port:
        check = [sys.executable, "-m", "deploy.image.healthy", str(port)]
        ran = subprocess.run(
            check, env={**os.environ, "http_proxy": "http://127.0.0.1:1"}, capture_output=True, text=True, check=False
        )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_it_is_not_where_its_loop_stands_still() -> None:
    with _server(time.monotonic() - 301) as port:
        why = unhealthy([1, port])
    assert why is not None
    assert why.startswith(f"port {port} answers 503: no turn of the loop for 301 s")


def test_the_health_check_ends_with_1_and_says_why() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "deploy.image.healthy", "1"], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (1, "nothing listens on 1\n")


@contextmanager
def _held(tmp_path: Path, script: str) -> Iterator[subprocess.Popen[str]]:
    """deploy.image.hold with a `palimpsest` of our own on PATH."""
    program = tmp_path / "palimpsest"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.image.hold", "learn", "--stream", "digits"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(_SECONDS)
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


@pytest.mark.parametrize("code", [0, 1, 2, BROKERS_AWAY])
def test_an_end_that_a_restart_may_mend_is_told(tmp_path: Path, code: int) -> None:
    with _held(tmp_path, f'echo "$@"; exit {code}') as process:
        assert process.wait(_SECONDS) == code
        assert process.stdout is not None
        assert process.stdout.read() == "learn --stream digits\n"


def test_a_kill_is_told_as_a_shell_does(tmp_path: Path) -> None:
    with _held(tmp_path, "kill -9 $$") as process:
        assert process.wait(_SECONDS) == 137


@pytest.mark.parametrize("code", [FENCED, REFUSED, DIVERGED])
def test_an_end_for_a_person_is_held_until_somebody_stops_it(tmp_path: Path, code: int) -> None:
    with _held(tmp_path, f"exit {code}") as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert f"exit code {code}" in line
        assert "not started again" in line
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(_SECONDS) == code


def test_a_stop_is_passed_on_and_waited_for(tmp_path: Path) -> None:
    script = 'trap "echo stopping; exit 0" TERM; echo ready; while :; do sleep 0.05; done'
    with _held(tmp_path, script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(_SECONDS) == 0
        assert process.stdout.read() == "stopping\n"
