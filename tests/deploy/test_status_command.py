"""`palimpsest status`: it finds who runs, says what they do, and says what it tried where nobody answers."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from prometheus_client import CollectorRegistry

from consumers.http_server import HttpServer, plain
from consumers.learner_status import LearnerStatus
from consumers.metrics_server import MetricsServer
from consumers.process_settings import SnapshotSettings
from consumers.status_answer import StatusAnswer
from deploy import asking_learners, running_learners
from deploy.asking_learners import checked_url
from deploy.commands.status import command as status_command
from deploy.embedded_kafka import EmbeddedKafka
from deploy.exit_codes import NO_LEARNER
from deploy.local_port import free_port
from deploy.running_learners import NOTE_IN_STATE, LearnerNote, announced, note_of_state, notes
from pipeline.user_error import UserError
from tests.deploy.command_line import Running, environment, palimpsest
from tests.deploy.streams import send, settings_file
from tests.deploy.terminal import Terminal


@pytest.fixture(autouse=True)
def learners(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where addresses are left; nobody else's are seen, nor the usual one."""
    folder = tmp_path / "learners"
    monkeypatch.setenv("PALIMPSEST_LEARNERS_DIR", str(folder))
    monkeypatch.setattr(asking_learners, "USUAL_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(asking_learners, "_ANSWER_SECONDS", 60.0)
    return folder


@contextmanager
def learner(stream: str = "digits", branch: str = "main") -> Iterator[str]:
    """What answers is the real thing; only nothing is learnt. Its address."""
    with MetricsServer(
        registry=CollectorRegistry(),
        host="127.0.0.1",
        port=0,
        last_turn=time.monotonic,
        ready=lambda: True,
        stale_after_seconds=100.0,
        routes=LearnerStatus(SnapshotSettings(), stream=stream, branch=branch, device="cpu").routes,
    ) as server:
        yield server.url


def status(*arguments: object) -> Result:
    return CliRunner().invoke(status_command, [*map(str, arguments)], catch_exceptions=False)


def answers(done: Result) -> list[StatusAnswer]:
    return [StatusAnswer.model_validate_json(line) for line in done.stdout.splitlines()]


@pytest.mark.kafka
def test_two_learners_of_a_stream_are_found_by_its_name_until_they_end(
    kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path
) -> None:
    send(kafka_broker, stream_name, 300)
    file = settings_file(tmp_path, kafka_broker, "registry: {enabled: false}\n")
    where = {"PALIMPSEST_LEARNERS_DIR": str(tmp_path / "learners")}

    def learning(branch: str) -> Running:
        state = tmp_path / branch
        options = ("--stream", stream_name, "--state", state, "--settings", file, "--branch", branch)
        return Running("learn", *options, env=where)

    with learning("main") as main, learning("trial") as trial:
        for running in (main, trial):
            running.wait_for_event("learning")
        both = answers(status("--stream", stream_name, "--json"))
        assert sorted(answer.branch for answer in both) == ["main", "trial"]
        (one,) = answers(status("--stream", stream_name, "--branch", "trial", "--json"))
        assert (one.stream, one.branch, one.device) == (stream_name, "trial", "cpu")
        assert one.records_consumed
        (by_state,) = answers(status("--state", tmp_path / "main", "--json"))
        assert by_state.branch == "main"
        table = palimpsest("status", "--state", tmp_path / "main", env=where)
        assert (table.returncode, table.stderr) == (0, "")
        shown = {line.split("  ")[0]: line.split("  ", 1)[1].strip() for line in table.stdout.splitlines()}
        assert (shown["stream"], shown["branch"], shown["dead letters"]) == (stream_name, "main", "0")
        assert "\x1b" not in table.stdout
        trial.signal(signal.SIGTERM)
        assert trial.end() == 0
        assert [answer.branch for answer in answers(status("--stream", stream_name, "--json"))] == ["main"]
        main.process.kill()
        main.process.wait()
    killed = status("--state", tmp_path / "main")
    assert (killed.exit_code, killed.stdout) == (NO_LEARNER, "")
    assert f"its learner (process {main.process.pid}) has ended" in killed.stderr
    assert note_of_state(tmp_path / "trial") is None
    nobody = status("--stream", stream_name, "--branch", "trial")
    assert nobody.exit_code == NO_LEARNER
    assert nobody.stderr.startswith(f"palimpsest: no learner of stream '{stream_name}', branch 'trial' answers (http")
    assert "start one with `palimpsest learn`" in nobody.stderr
    assert len(nobody.stderr.splitlines()) == 1


def test_a_note_is_there_while_the_learner_is(tmp_path: Path, learners: Path) -> None:
    with announced(stream="digits", branch="main", url="http://0.0.0.0:9105", state=tmp_path):
        (note,) = notes()
        assert note == note_of_state(tmp_path)
        assert note.url == "http://127.0.0.1:9105", "where it listens on all addresses it is asked on this machine's"
        assert (learners.stat().st_mode & 0o777) == 0o700
    assert notes() == []
    assert list(learners.iterdir()) == []
    assert list(tmp_path.iterdir()) == [learners]


def test_a_copy_of_a_state_is_not_the_state_that_is_learnt_in(tmp_path: Path) -> None:
    with announced(stream="digits", branch="main", url="http://127.0.0.1:9105", state=tmp_path):
        copy = tmp_path / "copy"
        copy.mkdir()
        shutil.copy(tmp_path / NOTE_IN_STATE, copy)
        done = status("--state", copy)
    assert done.exit_code == NO_LEARNER
    assert f"it is a copy of {tmp_path}, whose learner runs" in done.stderr


def test_one_that_took_over_keeps_its_note(tmp_path: Path) -> None:
    with announced(stream="digits", branch="main", url="http://127.0.0.1:1", state=tmp_path):
        newer = announced(stream="digits", branch="main", url="http://127.0.0.1:2", state=tmp_path)
        newer.__enter__()
    note = note_of_state(tmp_path)
    assert note is not None
    assert note.url.endswith(":2")
    newer.__exit__(None, None, None)
    assert note_of_state(tmp_path) is None


def test_where_nothing_can_be_written_it_learns_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("PALIMPSEST_LEARNERS_DIR", str(tmp_path / "file" / "learners"))
    with announced(stream="digits", branch="main", url="http://127.0.0.1:1", state=tmp_path / "file" / "state"):
        assert notes() == []


def test_a_user_without_a_home_learns_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `docker run --user 54321` may have it; the state's folder still says where it is."""

    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("PALIMPSEST_LEARNERS_DIR")
    monkeypatch.setattr(Path, "home", nobody)
    with learner() as url, announced(stream="digits", branch="main", url=url, state=tmp_path):
        assert notes() == []
        assert [answer.stream for answer in answers(status("--state", tmp_path, "--json"))] == ["digits"]
        assert status("--stream", "digits").exit_code == NO_LEARNER


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_notes_that_lead_nowhere_are_recognised(tmp_path: Path, learners: Path) -> None:
    """Of a killed learner, of another machine, of a port that somebody else has now, and files of others."""
    with learner("mail") as mail, announced(stream="digits", branch="main", url=mail, state=tmp_path):
        (left,) = notes()
        stale = replace(left, pid=dead_pid(), url="http://127.0.0.1:1")
        elsewhere = replace(left, host="elsewhere", url="http://127.0.0.1:2")
        for name, note in (("stale", stale), ("elsewhere", elsewhere)):
            (learners / f"{name}.json").write_text(json.dumps(asdict(note)))
        of_a_later_release = json.dumps(asdict(left) | {"started_at": "2026-01-01"})
        (learners / "later.json").write_text(of_a_later_release)
        for name, text in (("broken", "{"), ("list", "[]"), ("other", '{"pid": 1}'), ("bad", "\xff")):
            (learners / f"{name}.json").write_bytes(text.encode("latin-1"))
        done = status("--stream", "digits")
        assert done.exit_code == NO_LEARNER
        assert "the learner of stream 'mail', branch 'main' answers there" in done.stderr
        assert ":1 " not in done.stderr
        assert ":2 " not in done.stderr
        (tmp_path / NOTE_IN_STATE).write_text(json.dumps(asdict(elsewhere)))
        assert "its learner runs on elsewhere: ask there, or give --url" in status("--state", tmp_path).stderr
        (tmp_path / NOTE_IN_STATE).write_text(json.dumps(asdict(replace(elsewhere, host="a\x1b[2Jb"))))
        assert r"its learner runs on a\x1b[2Jb: " in status("--state", tmp_path).stderr
    with announced(stream="digits", branch="main", url="http://127.0.0.1:3", state=tmp_path):
        assert not (learners / "stale.json").exists(), "swept by the next one"
        assert (learners / "elsewhere.json").exists()


def test_the_usual_address_is_asked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another user, or one that could leave no note."""
    with learner() as url:
        monkeypatch.setattr(asking_learners, "USUAL_URL", url)
        assert [answer.stream for answer in answers(status("--json"))] == ["digits"]
        assert status("--stream", "mail").exit_code == NO_LEARNER


def test_with_a_url_nobody_else_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")  # says nothing of our own machine
    with learner() as url, learner(branch="other") as other:  # noqa: SIM117
        with announced(stream="digits", branch="other", url=other, state=tmp_path):
            for given in (url, f"{url}/", f"{url}/metrics", url.removeprefix("http://")):
                assert [answer.branch for answer in answers(status("--url", given, "--json"))] == ["main"]
            assert [answer.branch for answer in answers(status("--json"))] == ["other"]


@pytest.mark.parametrize("url", ["", "http://", "ftp://a", "http://a:port", "http://[::1"])
def test_what_is_no_address_is_one_line(url: str) -> None:
    with pytest.raises(UserError, match="is no address of a learner"):
        checked_url(url)


@pytest.mark.parametrize("body", ["<html>", '{"status": "ok"}', "[]", "\x00"])
def test_another_program_is_no_learner(body: str) -> None:
    with HttpServer(
        {"/status": {"GET": lambda _: plain(200, body)}}, name="other", host="127.0.0.1", port=0, in_use=""
    ) as server:
        done = status("--url", server.url)
    assert done.exit_code == NO_LEARNER
    assert "what answers there is no learner" in done.stderr


def test_a_predictor_is_none_either() -> None:
    with HttpServer({"/metrics": {}}, name="other", host="127.0.0.1", port=0, in_use="") as server:
        assert "no learner (status 404)" in status("--url", server.url).stderr


def test_on_a_terminal_it_is_coloured_and_watched_until_ctrl_c() -> None:
    with learner("dig\u202eits") as url:
        with Terminal("status", "--url", url) as terminal:
            assert terminal.end() == 0
            assert b"\x1b[33mstarting" in terminal.raw
            assert terminal.lines[0] == "stream             dig\\u202eits"
        with Terminal("status", "--url", url, NO_COLOR="1") as terminal:
            assert terminal.end() == 0
            assert b"\x1b[33m" not in terminal.raw
        watching = Terminal("status", "--url", url, "--watch", columns=40)
        watching.wait_for(lambda seen: seen.raw.count(b"starting") >= 3)
        assert "\n".join(watching.lines).count("starting") == 1, "over the ones before"
        assert max(map(len, watching.lines)) < 40
    with watching:
        watching.wait_for(lambda seen: "Connection refused" in " ".join(seen.lines))
        watching.press("\x03")
        assert watching.end() == 0
        assert watching.shows_cursor


def test_nothing_heavy_is_loaded_for_it() -> None:
    program = """
import sys
from deploy.cli import main
try:
    main()
finally:
    print([name for name in ("torch", "mlflow", "kafka", "numpy") if name in sys.modules])
"""
    with learner() as url:
        command = [sys.executable, "-c", program, "status", "--url", url]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_note_says_all_that_is_needed() -> None:
    note = LearnerNote(
        stream="s", branch="b", url="u", state="/s", pid=dead_pid(), host=socket.gethostname(), started_at=0.0
    )
    assert note.is_stale
    assert not replace(note, host="elsewhere").is_stale, "nobody sees its processes from here"
    folder = running_learners.notes_folder()
    assert folder is not None
    assert folder.name == "learners"
