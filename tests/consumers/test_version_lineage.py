"""What an adoption means for the versions in MLflow: whose child the adopted one is, and which ones it supersedes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from consumers.version_submission import VersionSubmission
from model_store.fault_points import on_fault_point
from model_store.mlflow_registry import MlflowRegistry
from model_store.registrar import Registrar
from model_store.registration_queue import RegistrationQueue
from model_store.registry import InMemoryRegistry, RegisteredVersion, Registry
from model_store.snapshot import Snapshot
from pipeline.restructuring.trigger import Kind
from tests.consumers.digit_records import digit_stream
from tests.consumers.learner_world import STREAM, Killed, World

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")

RECORDS = digit_stream(90, clean=True)
SNAPSHOTS: dict[str, Any] = {"every_records": 45, "keep": 50}
EVERY: dict[str, Any] = {"every_records": 60}


@pytest.fixture(autouse=True)
def _looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumers.adoption._LOOK_EVERY_SECONDS", 0.0)


class RegistrarInThisProcess:
    """Works on the queue when the learner ends, and when a test asks."""

    def __init__(self, queue: RegistrationQueue, registry: Registry) -> None:
        self._queue, self._registry = queue, registry

    def start(self) -> bool:
        return True

    def close(self, drain_seconds: float | None = None, goes_on: Callable[[float], bool] = bool) -> int:
        closing = threading.Event()
        closing.set()
        return Registrar(self._queue, self._registry, tell=lambda _: None).run(closing, 60.0).waiting


class Desk:
    """A world whose learners make versions."""

    def __init__(self, folder: Path, registry: Registry) -> None:
        self.world, self.registry = World(folder), registry
        self.queue = RegistrationQueue(folder / "registrations")
        self.world.write(RECORDS)

    def learn(self, max_records: int | None = None) -> None:
        submission = VersionSubmission(
            self.queue,
            RegistrarInThisProcess(self.queue, self.registry),
            stream=STREAM,
            state_id="state",
            registered=lambda *_: None,
            warned=lambda _: None,
        )
        self.world.learn(max_records=max_records, snapshots=SNAPSHOTS, registry=EVERY, versions=submission)

    def offer(self, at_records: int, kind: str = "consolidation") -> Snapshot:
        """The snapshot there, unchanged: what a job made of it is no matter here."""
        entries = self.world.store.entries()
        entry = next(e for e in entries if e.facts["records_consumed"] == at_records)
        parent = self.world.store.load(entry)
        result = Snapshot(generation=0, sequence=0, state=parent.state, offsets=parent.offsets, facts={**parent.facts})
        self.world.offers.put(f"{kind}-1", kind, parent, result, {})
        return parent

    def versions(self) -> list[RegisteredVersion]:
        return self.registry.versions(STREAM)

    def lines(self) -> list[tuple[int, str | None, int, int | None, int | None]]:
        """(version, trigger, offset, parent, superseded by)"""
        partition = self.world.partition
        return [
            (v.version, v.trigger, (v.offsets or {})[partition], v.parent_version, v.superseded_by)
            for v in self.versions()
        ]


@pytest.fixture(params=["memory", "mlflow"])
def desk(request: pytest.FixtureRequest, tmp_path: Path) -> Desk:
    if request.param == "memory":
        return Desk(tmp_path, InMemoryRegistry())
    return Desk(tmp_path, MlflowRegistry(request.getfixturevalue("tracking_uri")))


def offsets_of(desk: Desk) -> list[int]:
    return [offset for _, _, offset, _, _ in desk.lines()]


def test_the_version_of_an_adopted_state_names_its_parent_and_supersedes_what_came_since(desk: Desk) -> None:
    desk.learn()
    before = desk.lines()
    assert [line[1] for line in before] == ["periodic"] * (len(before) - 1) + ["final"]
    assert len(before) >= 4
    second = before[1][2]
    desk.offer(second)  # made of the very records of version 2
    desk.learn()
    after = desk.lines()
    adopted = len(before) + 1
    assert after[: len(before)] == [(*line[:4], None if line[0] <= 2 else adopted) for line in before]
    assert after[adopted - 1] == (adopted, "consolidation", second, 2, None)
    told = [json.loads(message.value or b"") for message in desk.world.events("version_registered")]
    (of_adopted,) = [event for event in told if event["version"] == adopted]
    assert of_adopted["tags"]["palimpsest.parent_version"] == "2"


def test_what_is_learnt_after_it_is_its_child(desk: Desk) -> None:
    desk.learn(max_records=200)
    before = desk.lines()
    desk.offer(before[0][2])
    desk.learn()
    adopted, *later = desk.lines()[len(before) :]
    assert adopted[1] == "consolidation"
    assert adopted[3] == 1
    assert later
    assert [line[3] for line in later] == [adopted[0], *(line[0] for line in later[:-1])]
    assert all(line[4] is None for line in later)
    assert all(line[4] == adopted[0] for line in desk.lines()[1 : len(before)])


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("point", ["adopt.committed", "commit.written", "commit.told"])
def test_killed_at_any_step_the_tags_are_the_same(tmp_path: Path, point: str, kind: Kind) -> None:
    desk = Desk(tmp_path, InMemoryRegistry())
    desk.learn()
    before = desk.lines()
    desk.offer(before[1][2], kind)

    def die(name: str) -> None:
        if name == point:
            raise Killed

    on_fault_point(die)
    try:
        with pytest.raises(Killed):
            desk.learn()
    finally:
        on_fault_point(None)
    desk.learn()
    (adopted,) = [line for line in desk.lines() if line[1] == kind]
    assert adopted[3] == 2
    assert [line[4] for line in desk.lines()[: len(before)]] == [None, None] + [adopted[0]] * (len(before) - 2)


def test_an_mlflow_that_is_away_meanwhile_hears_of_it_later(
    tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    desk = Desk(tmp_path, MlflowRegistry("http://127.0.0.1:9"))  # nobody listens on "discard"
    desk.learn()
    first = next(e for e in desk.world.store.entries() if e.facts.get("version") is not None)
    desk.offer(cast(int, first.facts["records_consumed"]))
    desk.learn()
    waiting = len(desk.queue.pending_numbers())
    assert waiting > 3
    desk.registry = MlflowRegistry(tracking_uri)
    desk.learn()
    assert desk.queue.pending_numbers() == []
    assert len(desk.lines()) == waiting
    (adopted,) = [line for line in desk.lines() if line[1] == "consolidation"]
    assert adopted[3] == 1
    assert [line[4] for line in desk.lines()[: adopted[0]]] == [None, *[adopted[0]] * (adopted[0] - 2), None]
