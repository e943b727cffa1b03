"""Registrations survive kills and a registry that is away, and each becomes one version."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.local_port import free_port
from model_store.registrar import Registrar, RegistrarReport
from model_store.registrar_process import RegistrarProcess
from model_store.registration_queue import Receipt, RegistrationQueue
from model_store.registry import InMemoryRegistry, RegisteredVersion, RegistrationRequest, RegistryUnavailable
from model_store.tracking_uri import sqlite_file
from pipeline.user_error import UserError
from tests.model_store.tiny_servable import request, tiny_classifier

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")


def wait_until(condition: Callable[[], Any], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def queue(tmp_path: Path) -> RegistrationQueue:
    return RegistrationQueue(tmp_path / "registrations")


@pytest.fixture
def submit(queue: RegistrationQueue, tmp_path: Path) -> Callable[[int], int]:
    """Submit the request of snapshot `number`; returns its place in the queue."""
    return lambda number: queue.submit(request(tmp_path / "servable", number), tiny_classifier().save).number


def drained(queue: RegistrationQueue, registry: InMemoryRegistry, told: list[str] | None = None) -> RegistrarReport:
    """A registrar whose parent is gone from the beginning."""
    closing = threading.Event()
    closing.set()
    lines: list[str] = [] if told is None else told
    return Registrar(queue, registry, tell=lines.append).run(closing, drain_seconds=60.0)


def test_a_request_comes_out_as_it_went_in(queue: RegistrationQueue, tmp_path: Path) -> None:
    wanted = request(
        tmp_path / "servable",
        3,
        parent_version=2,
        goes_back=True,
        tags={"palimpsest.note": "köln"},
        average_forgetting=None,
    )
    assert queue.oldest() is None
    assert queue.submit(wanted, tiny_classifier().save).number == 1
    pending = RegistrationQueue(queue.folder).oldest()
    assert pending is not None
    assert (pending.request.servable / "servable.json").is_file()
    for name in RegistrationRequest.__slots__:
        if name != "servable":
            assert getattr(pending.request, name) == getattr(wanted, name), name


def test_requests_become_versions_in_their_order(queue: RegistrationQueue, submit: Callable[[int], int]) -> None:
    registry = InMemoryRegistry()
    assert [submit(number) for number in (5, 3, 9)] == [1, 2, 3]
    assert drained(queue, registry) == RegistrarReport(registered=3, waiting=0, problem=None)
    assert [entry.tags["palimpsest.records_trained"] for entry in registry.versions("pets")] == ["500", "300", "900"]
    receipts = queue.poll_receipts()
    assert [(receipt.number, receipt.version, receipt.problem) for receipt in receipts] == [
        (1, 1, None),
        (2, 2, None),
        (3, 3, None),
    ]
    first = registry.versions("pets")[0]
    assert (receipts[0].tags, receipts[0].run_id) == (first.tags, first.run_id)
    assert receipts[0].snapshot_sha256 == first.snapshot_sha256
    assert queue.poll_receipts() == []
    assert list((queue.folder / "pending").iterdir()) == []


def test_receipts_stay_until_they_are_acknowledged(queue: RegistrationQueue, submit: Callable[[int], int]) -> None:
    registry = InMemoryRegistry()
    submit(1)
    submit(2)
    drained(queue, registry)
    assert len(queue.poll_receipts()) == 2
    restarted = RegistrationQueue(queue.folder)  # killed before what the receipts say was committed
    receipts = restarted.poll_receipts()
    assert len(receipts) == 2
    restarted.acknowledge(receipts[:1])
    restarted.acknowledge(receipts[:1])
    assert RegistrationQueue(queue.folder).poll_receipts() == receipts[1:]
    # A number is not used again while its receipt is about.
    assert submit(3) == 3


def test_away_then_back(
    queue: RegistrationQueue, submit: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_store.registrar._FIRST_BACK_OFF_SECONDS", 0.01)
    registry, told, closing = InMemoryRegistry(), list[str](), threading.Event()
    registry.available = False
    registrar = Registrar(queue, registry, tell=told.append)
    reports: list[RegistrarReport] = []
    thread = threading.Thread(target=lambda: reports.append(registrar.run(closing, 60.0)))
    thread.start()
    submit(1)
    submit(2)
    wait_until(lambda: told)
    assert queue.pending_numbers() == [1, 2]
    registry.available = True
    wait_until(lambda: not queue.pending_numbers())
    submit(3)
    wait_until(lambda: not queue.pending_numbers())
    closing.set()
    thread.join()
    assert reports == [RegistrarReport(registered=3, waiting=0, problem=None)]
    assert [entry.version for entry in registry.versions("pets")] == [1, 2, 3]
    # Told once when it went, once when it came back: not at every try.
    assert len(told) == 2
    assert "versions wait" in told[0]
    assert "answers again: version 1" in told[1]


def test_the_end_does_not_wait_for_a_registry_that_is_away(
    queue: RegistrationQueue, submit: Callable[[int], int]
) -> None:
    registry = InMemoryRegistry()
    registry.available = False
    submit(1)
    report = drained(queue, registry)
    assert (report.registered, report.waiting) == (0, 1)
    assert report.problem is not None
    assert queue.poll_receipts() == []


def test_killed_between_version_and_receipt(
    queue: RegistrationQueue, submit: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    registry = InMemoryRegistry()
    submit(1)
    for place in ("_write_receipt", "finish"):
        with monkeypatch.context() as patch:
            patch.setattr(RegistrationQueue, place, kill)
            with pytest.raises(Killed):
                drained(queue, registry)
    with monkeypatch.context() as patch:
        patch.setattr("model_store.registration_queue.remove_folder", kill)
        with pytest.raises(Killed):
            drained(queue, registry)
    assert queue.pending_numbers() == [1]
    drained(queue, registry)
    assert len(registry.versions("pets")) == 1
    assert [receipt.version for receipt in queue.poll_receipts()] == [1]


def test_a_request_that_cannot_be_written_leaves_nothing(queue: RegistrationQueue, tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        folder.mkdir()
        (folder / "weights.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        queue.submit(request(tmp_path / "servable"), full)
    assert list((queue.folder / "pending").iterdir()) == []
    assert queue.oldest() is None


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"[]", b'{"format_version": 2}', b"[" * 100_000, b'{"stream": "a/b"}', b"\xff"]
)
def test_a_broken_request_does_not_hold_up_the_others(
    queue: RegistrationQueue, submit: Callable[[int], int], content: bytes | None
) -> None:
    registry = InMemoryRegistry()
    submit(1)
    submit(2)
    path = queue.folder / "pending" / "0000000001" / "request.json"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert drained(queue, registry).registered == 1
    broken, good = queue.poll_receipts()
    assert (broken.number, broken.version, good.number, good.version) == (1, None, 2, 1)
    assert broken.problem
    (kept,) = (queue.folder / "broken").iterdir()
    assert (kept / "servable" / "weights.safetensors").is_file()


def test_a_servable_without_weights_is_set_aside(queue: RegistrationQueue, submit: Callable[[int], int]) -> None:
    submit(1)
    (queue.folder / "pending" / "0000000001" / "servable" / "weights.safetensors").unlink()
    told: list[str] = []
    assert drained(queue, InMemoryRegistry(), told).registered == 0
    (receipt,) = queue.poll_receipts()
    assert receipt.problem is not None
    assert "weights.safetensors" in receipt.problem
    assert receipt.snapshot_sha256
    assert "set aside" in told[0]


def test_a_backlog_is_bounded(tmp_path: Path) -> None:
    queue = RegistrationQueue(tmp_path / "registrations", max_pending=3)
    submitted = [queue.submit(request(tmp_path / "servable", number), tiny_classifier().save) for number in range(1, 6)]
    # The oldest may be in work and the newest is the one that matters.
    assert [entry.dropped for entry in submitted] == [None, None, None, 2, 3]
    assert queue.pending_numbers() == [1, 4, 5]
    registry = InMemoryRegistry()
    assert drained(queue, registry).registered == 3


def test_two_registrars_never_work_at_once(queue: RegistrationQueue, submit: Callable[[int], int]) -> None:
    """The old learner's drains while the new learner's starts."""
    submit(1)
    registry = InMemoryRegistry()
    with RegistrationQueue(queue.folder).lock() as locked:
        assert locked
        closing = threading.Event()
        closing.set()
        report = Registrar(queue, registry, tell=lambda _: None).run(closing, drain_seconds=0.3)
        assert (report.registered, report.waiting) == (0, 1)
    assert drained(queue, registry).registered == 1


def sha256_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def pinned(queue: RegistrationQueue) -> set[str]:
    """As another process sees it, and as this one does that has asked before."""
    fresh = RegistrationQueue(queue.folder).pinned_sha256()
    assert queue.pinned_sha256() == fresh
    return set(fresh)


def test_snapshots_of_what_waits_is_told_or_has_an_alias_are_pinned(
    queue: RegistrationQueue, submit: Callable[[int], int]
) -> None:
    registry = InMemoryRegistry()
    assert pinned(queue) == set()
    for number in (1, 2, 3):
        submit(number)
    assert pinned(queue) == {sha256_of(1), sha256_of(2), sha256_of(3)}
    drained(queue, registry)
    assert pinned(queue) == {sha256_of(1), sha256_of(2), sha256_of(3)}, "the receipts are not read yet"
    queue.acknowledge(queue.poll_receipts())
    assert pinned(queue) == {sha256_of(3)}, "the challenger"
    registry.set_alias("pets", "champion", 1)
    registry.set_alias("pets", "previous", 2)
    submit(4)
    assert pinned(queue) == {sha256_of(3), sha256_of(4)}
    drained(queue, registry)
    queue.acknowledge(queue.poll_receipts())
    assert pinned(queue) == {sha256_of(1), sha256_of(2), sha256_of(4)}
    assert queue.aliases() == {"pets": {"champion": sha256_of(1), "challenger": sha256_of(4), "previous": sha256_of(2)}}


def test_aliases_are_noted_at_the_start_and_every_so_often(
    queue: RegistrationQueue, submit: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person has pointed the champion to another version while no learner ran, and does so again while one does."""
    monkeypatch.setattr("model_store.registrar._ALIASES_SECONDS", 0.01)
    registry = InMemoryRegistry()
    submit(1)
    submit(2)
    drained(queue, registry)
    registry.set_alias("pets", "champion", 1)
    closing = threading.Event()
    thread = threading.Thread(target=Registrar(queue, registry, tell=lambda _: None).run, args=(closing, 60.0))
    thread.start()
    try:
        wait_until(lambda: queue.aliases()["pets"].get("champion") == sha256_of(1))
        registry.set_alias("pets", "champion", 2)
        wait_until(lambda: queue.aliases()["pets"].get("champion") == sha256_of(2))
    finally:
        closing.set()
        thread.join()


def test_where_the_aliases_cannot_be_asked_the_new_version_s_own_are_noted(
    queue: RegistrationQueue, submit: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise RegistryUnavailable("away")

    registry = InMemoryRegistry()
    submit(1)
    monkeypatch.setattr(registry, "alias", away)
    assert drained(queue, registry).registered == 1
    assert queue.aliases() == {"pets": {"challenger": sha256_of(1)}}


def test_killed_before_the_receipt_the_aliases_are_noted(
    queue: RegistrationQueue, submit: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    submit(1)
    monkeypatch.setattr(RegistrationQueue, "finish", kill)
    with pytest.raises(KeyboardInterrupt):
        drained(queue, InMemoryRegistry())
    assert queue.aliases() == {"pets": {"challenger": sha256_of(1)}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"format_version":2,"streams":{}}',
        b'{"format_version":1,"streams":{"pets":{"champion":"no sum"}}}',
        b'{"format_version":1,"streams":{"pets":["champion"]}}',
        b" " * (2 << 20),
    ],
)
def test_aliases_that_have_decayed_are_an_error_and_are_written_anew(
    queue: RegistrationQueue, submit: Callable[[int], int], content: bytes
) -> None:
    """Not to know what the champion is must not delete its snapshot."""
    submit(1)
    (queue.folder / "aliases.json").write_bytes(content)
    for _ in range(2):
        with pytest.raises(OSError, match="does not say what the aliases point to"):
            queue.pinned_sha256()
    registry = InMemoryRegistry()
    drained(queue, registry)
    assert queue.aliases() == {"pets": {"challenger": sha256_of(1)}}
    # No registration is needed for it, and half of the truth does not take its place.
    (queue.folder / "aliases.json").write_bytes(content)
    registry.available = False
    looked_at(queue, registry)
    with pytest.raises(OSError, match="does not say what the aliases point to"):
        queue.pinned_sha256()
    registry.available = True
    looked_at(queue, registry)
    assert queue.aliases() == {"pets": {"challenger": sha256_of(1)}}


def test_decayed_aliases_stay_where_only_those_of_the_new_version_are_known(
    queue: RegistrationQueue, submit: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their place, the challenger alone would say that the champion may go."""

    def away(*_: object) -> None:
        raise RegistryUnavailable("away")

    registry, told = InMemoryRegistry(), list[str]()
    submit(1)
    (queue.folder / "aliases.json").write_bytes(b"{")
    with monkeypatch.context() as patch:
        patch.setattr(registry, "alias", away)
        assert drained(queue, registry, told).registered == 1
    assert "aliases.json" in told[0]
    with pytest.raises(OSError, match="does not say what the aliases point to"):
        queue.pinned_sha256()
    looked_at(queue, registry)
    assert queue.aliases() == {"pets": {"challenger": sha256_of(1)}}


def looked_at(queue: RegistrationQueue, registry: InMemoryRegistry) -> None:
    """A registrar that finds nothing to register looks at the aliases once."""
    asked, closing = threading.Event(), threading.Event()

    def seen(*arguments: object) -> RegisteredVersion | None:
        asked.set()
        return InMemoryRegistry.alias(registry, *arguments)  # type: ignore[arg-type]

    registry.alias = seen  # type: ignore[assignment, method-assign]
    thread = threading.Thread(target=Registrar(queue, registry, tell=lambda _: None).run, args=(closing, 60.0))
    thread.start()
    try:
        wait_until(asked.is_set, seconds=30.0)
    finally:
        closing.set()
        thread.join()
        del registry.alias


def test_a_registrar_asks_for_its_stream_though_nothing_was_noted(
    queue: RegistrationQueue, submit: Callable[[int], int]
) -> None:
    registry = InMemoryRegistry()
    submit(1)
    drained(queue, registry)
    registry.set_alias("pets", "champion", 1)
    (queue.folder / "aliases.json").unlink()
    looked_at(queue, registry)
    assert queue.aliases() == {"pets": {"challenger": sha256_of(1), "champion": sha256_of(1)}}


def test_requests_and_receipts_that_have_decayed_are_an_error_until_they_are_set_aside(
    queue: RegistrationQueue, submit: Callable[[int], int]
) -> None:
    for number in (1, 2, 3):
        submit(number)
    pending = queue.folder / "pending"
    (pending / "0000000001" / "request.json").unlink()
    assert pinned(queue) == {sha256_of(2), sha256_of(3)}, "what is not there pins nothing"
    (pending / "0000000002" / "request.json").write_bytes(b"[")
    with pytest.raises(OSError, match=r"0000000002/request\.json"):
        RegistrationQueue(queue.folder).pinned_sha256()
    drained(queue, InMemoryRegistry())
    assert pinned(queue) == {sha256_of(3)}, "what was set aside said of no snapshot"
    receipt = queue.folder / "done" / "0000000003.json"
    receipt.write_bytes(b"[]")
    with pytest.raises(OSError, match=r"0000000003\.json"):
        queue.pinned_sha256()
    receipts = queue.poll_receipts()
    assert [(entry.number, entry.version) for entry in receipts] == [(1, None), (2, None), (3, None)]
    assert "its receipt has decayed" in str(receipts[2].problem)
    assert next((queue.folder / "broken").glob("0000000003.json-*")).read_bytes() == b"[]"
    queue.acknowledge(receipts)
    assert pinned(queue) == {sha256_of(3)}, "the challenger"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("file", ["request.json", "0000000001.json", "aliases.json"])
def test_what_cannot_be_read_just_now_is_an_error_and_is_read_again(
    queue: RegistrationQueue,
    submit: Callable[[int], int],
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    number: int,
) -> None:
    registry = InMemoryRegistry()
    submit(1)
    drained(queue, registry)
    submit(2)
    opened = Path.open

    def refused(path: Path, *arguments: Any, **more: Any) -> Any:
        if path.name == file:
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, *arguments, **more)

    def read_bytes(path: Path) -> bytes:
        with refused(path, "rb") as file:
            return bytes(file.read())

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refused)
        patch.setattr(Path, "read_bytes", read_bytes)
        for _ in range(2):
            with pytest.raises(OSError, match=os.strerror(number)):
                queue.pinned_sha256()
    assert pinned(queue) == {sha256_of(1), sha256_of(2)}


def test_what_kills_left_half_written_goes(queue: RegistrationQueue, submit: Callable[[int], int]) -> None:
    submit(1)
    for place in ("pending/.tmp-a-0000000002/servable", "pending/.tmp-b-0000000001", "done"):
        (queue.folder / place).mkdir(parents=True)
    for file in ("done/.tmp-c-0000000001.json", ".tmp-d-aliases.json", ".tmp-e-stream"):
        (queue.folder / file).write_bytes(b"half")
    restarted = RegistrationQueue(queue.folder)
    with restarted.lock() as locked:
        assert locked
        left = {path.relative_to(queue.folder).as_posix() for path in queue.folder.rglob(".tmp-*")}
        assert left == {"pending/.tmp-a-0000000002", "pending/.tmp-b-0000000001", ".tmp-e-stream"}, "the learner's own"
        (queue.folder / "done" / ".tmp-f-0000000001.json").write_bytes(b"being written")
        with RegistrationQueue(queue.folder).lock() as other:
            assert not other
        restarted.submit(request(queue.folder, 2), tiny_classifier().save)
        left = {path.relative_to(queue.folder).as_posix() for path in queue.folder.rglob(".tmp-*")}
        assert left == {"done/.tmp-f-0000000001.json"}
        (queue.folder / "pending" / ".tmp-g").mkdir()
        restarted.submit(request(queue.folder, 3), tiny_classifier().save)
        assert (queue.folder / "pending" / ".tmp-g").is_dir(), "by the first submission alone"
    assert queue.pending_numbers() == [1, 2, 3]


def test_what_waits_is_known_by_its_snapshot(queue: RegistrationQueue, submit: Callable[[int], int]) -> None:
    submit(1)
    submit(2)
    (queue.folder / "pending" / "0000000002" / "request.json").write_bytes(b"[")
    assert [queue.waits_for(sha256_of(number)) for number in (1, 2, 3)] == [True, False, False]


def test_a_number_used_again_is_read_again(queue: RegistrationQueue, submit: Callable[[int], int]) -> None:
    assert submit(1) == 1
    assert queue.pinned_sha256() == {sha256_of(1)}
    shutil.rmtree(queue.folder / "pending" / "0000000001")
    assert submit(2) == 1
    assert queue.pinned_sha256() == {sha256_of(2)}


def test_a_wrong_uri_is_told_at_once(queue: RegistrationQueue, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be used"):
        RegistrarProcess(queue, "nonsense", drain_seconds=1.0, log_file=tmp_path / "registrar.log")


def test_the_process_keeps_what_mlflow_did_not_take_and_a_later_one_registers_it(
    queue: RegistrationQueue, submit: Callable[[int], int], tracking_uri: str, tmp_path: Path
) -> None:
    from model_store.mlflow_registry import MlflowRegistry

    log = tmp_path / "registrar.log"
    submit(1)
    away = RegistrarProcess(queue, f"http://127.0.0.1:{free_port()}", drain_seconds=60.0, log_file=log)
    assert away.start()
    assert away.start()
    assert (away.alive, away.starts) == (True, 1)
    assert away.close() == 1
    assert not away.alive
    (line,) = log.read_text().splitlines()
    assert line.startswith("versions wait, to be registered later: MLflow at http://127.0.0.1:")
    log.unlink()

    submit(2)
    back = RegistrarProcess(queue, tracking_uri, drain_seconds=120.0, log_file=log)
    assert back.start()
    submit(3)
    assert back.close() == 0
    assert log.read_text() == "", "MLflow's noise does not belong there"
    assert [receipt.version for receipt in queue.poll_receipts()] == [1, 2, 3]
    versions = MlflowRegistry(tracking_uri).versions("pets")
    assert [(entry.version, entry.parent_version) for entry in versions] == [(1, None), (2, 1), (3, 2)]
    assert [sorted(entry.aliases) for entry in versions] == [[], [], ["challenger"]]
    assert queue.aliases() == {"pets": {"challenger": sha256_of(3)}}


@pytest.mark.slow
def test_kill_9_anywhere_makes_exactly_one_version_each(
    queue: RegistrationQueue, submit: Callable[[int], int], tracking_uri: str, tmp_path: Path
) -> None:
    from model_store.mlflow_registry import MlflowRegistry

    database = sqlite_file(tracking_uri)
    assert database is not None
    artifacts = database.parent / "mlartifacts"
    for number in (1, 2, 3, 4):
        submit(number)
    moments: list[Callable[[], bool]] = [
        lambda: next(artifacts.rglob("MLmodel"), None) is not None,  # an artifact is being copied
        lambda: len(list((queue.folder / "done").glob("*.json"))) >= 1,
        lambda: len(list(artifacts.rglob("provenance.json"))) >= 3,
    ]
    for moment in moments:
        process = RegistrarProcess(queue, tracking_uri, drain_seconds=120.0, log_file=tmp_path / "registrar.log")
        assert process.start()
        assert process.process_id is not None
        wait_until(moment)
        os.kill(process.process_id, signal.SIGKILL)
        process.close()
    last = RegistrarProcess(queue, tracking_uri, drain_seconds=120.0, log_file=tmp_path / "registrar.log")
    assert last.start()
    assert last.close() == 0
    versions = MlflowRegistry(tracking_uri).versions("pets")
    assert len({entry.snapshot_sha256 for entry in versions}) == len(versions) == 4
    receipts: list[Receipt] = queue.poll_receipts()
    assert sorted(receipt.version or 0 for receipt in receipts) == [1, 2, 3, 4]
