"""A learner takes over what was made of an earlier state of it: once, whatever kills it, and nothing is told twice."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from consumers.catching_up import AGAIN
from consumers.memory_record_source import InMemoryRecordSource
from consumers.metrics import LearnerMetrics
from consumers.process_settings import MetricsSettings
from model_store.fault_points import on_fault_point
from model_store.snapshot import Snapshot
from model_store.snapshot_store import SnapshotStore
from pipeline.codec.record_decoder import RecordDecoder
from pipeline.restructuring.grown_network import grown
from pipeline.restructuring.replaced_network import with_network
from pipeline.restructuring.specialist import network_like
from pipeline.restructuring.teacher import Teacher
from pipeline.state import StateTree, fingerprint
from pipeline.stream_learner import StreamLearner
from tests.consumers.digit_records import digit_stream
from tests.consumers.learner_world import (
    STREAM,
    FullDisk,
    Killed,
    KilledAfterSteps,
    KilledBeforeTelling,
    Witness,
    World,
    learner_settings,
    run,
)

RECORDS = digit_stream(90)
OFTEN: dict[str, Any] = {"every_records": 45, "keep": 50}
JOB = "consolidation-1"


@pytest.fixture(autouse=True)
def _looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumers.adoption._LOOK_EVERY_SECONDS", 0.0)


def begun(folder: Path, records: int = 150) -> World:
    """Has learnt half of the log, with a snapshot every 45 records."""
    world = World(folder)
    world.write(RECORDS)
    world.learn(max_records=records, snapshots=OFTEN)
    return world


def parent_of(world: World, records: int = 45) -> Snapshot:
    """An early snapshot."""
    entry = next(entry for entry in world.store.entries() if cast(int, entry.facts["records_consumed"]) >= records)
    return world.store.load(entry)


def changed(state: StateTree) -> StateTree:
    """Another network of the same shape: what a job would make of it."""
    other = copy.deepcopy(state)
    network = cast("dict[str, Tensor]", cast("dict[str, Any]", other["learner"])["network"])
    for number, tensor in enumerate(network.values()):
        random = torch.Generator().manual_seed(number)
        tensor.add_(0.01 * torch.randn(tensor.shape, generator=random))
    return other


def grown_by_one(state: StateTree) -> StateTree:
    """A network with a sub-module more, fresh, beside those that there were, which are frozen: what an expansion makes,
    but for what it has learnt."""
    present = Teacher.from_state(cast(StateTree, state["learner"]))
    addition = network_like(present.network, len(present.class_names), 3, "addition", body=None)
    return with_network(state, grown(present.network, addition, freeze_old=True), learner_settings())


@contextmanager
def kill_at(place: str) -> Iterator[None]:
    """The process dies where it comes to this point."""

    def die(name: str) -> None:
        if name == place:
            raise Killed

    on_fault_point(die)
    try:
        yield
    finally:
        on_fault_point(None)


def offer(
    world: World,
    change: Callable[[StateTree], StateTree] = changed,
    records: int = 45,
    job: str = JOB,
    parent: Snapshot | None = None,
    **facts: Any,
) -> Snapshot:
    parent = parent or parent_of(world, records)
    result = Snapshot(
        generation=0,
        sequence=0,
        state=change(parent.state),
        offsets=parent.offsets,
        facts={**parent.facts, **facts},
    )
    world.offers.put(job, "consolidation", parent, result, {"accuracy_before": 0.5, "accuracy_after": 0.75})
    return parent


def model(world: World) -> str:
    """What was learnt, without what is only kept beside it."""
    return fingerprint(cast(StateTree, world.newest().state["learner"]))


def by_hand(world: World, change: Callable[[StateTree], StateTree]) -> str:
    """The changed parent, learnt on from its place to the end, with no process around it."""
    parent = parent_of(world)
    learner = StreamLearner(world.settings)
    learner.load_state(change(parent.state))
    source, decode = InMemoryRecordSource(world.log), RecordDecoder(world.settings.input).decode
    source.seek(parent.offsets)
    while records := source.poll(100, 0.0):
        for record in records:
            if learner.add(decode(record)):
                learner.step(learner.assembler.take())
    learner.flush()
    assert learner.learner is not None
    return fingerprint(learner.learner.state())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(tmp_path_factory.mktemp("undisturbed"))
    world.write(RECORDS)
    world.learn()
    return world


@pytest.fixture
def world(tmp_path: Path) -> World:
    return begun(tmp_path)


def told_once(world: World, undisturbed: World) -> None:
    assert world.dead_offsets() == undisturbed.dead_offsets()
    classes = [json.loads(message.value or b"")["class"] for message in world.events("new_class")]
    assert sorted(classes) == ["0", "1", "2", "3", "4", "5"]
    assert len(world.events("adopted")) == 1
    ids = [dict(message.headers)["ce_id"] for message in world.told(f"{STREAM}.events")]
    assert len(ids) == len(set(ids))


def test_an_adopted_parent_learns_its_way_back_to_the_very_same_model(world: World, undisturbed: World) -> None:
    """The one result whose outcome is known: a job that changes nothing."""
    offer(world, lambda state: state)
    report = world.learn(snapshots=OFTEN)
    assert model(world) == model(undisturbed)
    told_once(world, undisturbed)
    assert report.records > len(RECORDS) - 150, "what came since the parent was learnt once more"
    newest = world.newest()
    assert newest.offsets == {world.partition: len(RECORDS)}
    assert newest.state["records_consumed"] == len(RECORDS)


def test_a_changed_network_learns_what_came_since_and_everything_is_told_once(world: World, undisturbed: World) -> None:
    expected = by_hand(world, changed)
    parent, before = offer(world), cast(int, world.newest().state["records_consumed"])
    world.learn(snapshots=OFTEN)
    assert model(world) == expected != model(undisturbed)
    told_once(world, undisturbed)
    (told,) = world.events("adopted")
    data = json.loads(told.value or b"")
    assert data["kind"] == "consolidation"
    assert data["accuracy_after"] == 0.75
    assert data["parent_records"] == parent.state["records_consumed"]
    assert data["records_to_relearn"] == before - cast(int, parent.state["records_consumed"])


def test_a_network_that_has_grown_learns_on_and_is_shown_as_such(world: World, undisturbed: World) -> None:
    offer(world, grown_by_one)
    metrics = LearnerMetrics(MetricsSettings(), stream=STREAM, branch="main")
    world.learn(observer=metrics, snapshots=OFTEN)
    told_once(world, undisturbed)
    learner = cast("dict[str, Any]", world.newest().state["learner"])
    frozen, free = learner["architecture"]["options"]["parts"]
    assert (frozen["frozen"], free["frozen"]) == (True, False)
    before = cast("dict[str, Tensor]", cast("dict[str, Any]", parent_of(world).state["learner"])["network"])
    after = cast("dict[str, Tensor]", learner["network"])
    assert all(torch.equal(after[f"body.parts.0.{name[5:]}"], before[name]) for name in before if "body." in name)
    parameters = sum(tensor.numel() for tensor in after.values())
    assert metrics.registry.get_sample_value("palimpsest_sub_modules") == 2
    assert metrics.registry.get_sample_value("palimpsest_network_parameters") == parameters


def test_it_is_adopted_while_the_learner_runs(tmp_path: Path, undisturbed: World) -> None:
    world = begun(tmp_path)
    expected = by_hand(world, changed)

    class OffersLate(Witness):
        def stepped(self, learner: StreamLearner, report: Any) -> None:
            super().stepped(learner, report)
            if len(self.steps) == 3:
                offer(world)

    witness = OffersLate()
    world.learn(observer=witness, snapshots=OFTEN)
    assert model(world) == expected
    told_once(world, undisturbed)
    (told,) = world.events("adopted")
    assert json.loads(told.value or b"")["expected_seconds"] > 0


@pytest.mark.parametrize("change", [changed, grown_by_one])
@pytest.mark.parametrize("point", ["adopt.begun", "adopt.loaded", "adopt.committed", "commit.written", "commit.told"])
def test_a_kill_during_the_adoption_adopts_once(
    world: World, undisturbed: World, point: str, change: Callable[[StateTree], StateTree]
) -> None:
    expected = by_hand(world, change)
    offer(world, change)
    with kill_at(point), pytest.raises(Killed):
        world.learn(snapshots=OFTEN)
    world.learn(snapshots=OFTEN)
    assert model(world) == expected
    told_once(world, undisturbed)


@pytest.mark.parametrize("change", [changed, grown_by_one])
@pytest.mark.parametrize("steps", [1, 4, 9])
def test_a_kill_while_it_learns_again_changes_nothing(
    world: World, undisturbed: World, steps: int, change: Callable[[StateTree], StateTree]
) -> None:
    expected = by_hand(world, change)
    offer(world, change)
    with pytest.raises(Killed):
        world.learn(observer=KilledAfterSteps(steps), snapshots=OFTEN)
    with pytest.raises(Killed):
        world.learn(commit_log=KilledBeforeTelling(world.commit_log(), commits=2), snapshots=OFTEN)
    world.learn(snapshots=OFTEN)
    assert model(world) == expected
    told_once(world, undisturbed)


def test_a_lost_adoption_is_made_again(world: World, undisturbed: World) -> None:
    """Its snapshot decays before there is another: the one before knows nothing of it, and the offer is still there."""
    expected = by_hand(world, changed)
    offer(world)
    with kill_at("adopt.committed"), pytest.raises(Killed):
        world.learn(snapshots=OFTEN)
    adopted = world.newest_entry()
    (adopted.path / adopted.manifest.files[0].name).write_bytes(b"decayed")
    world.learn(snapshots=OFTEN)
    assert model(world) == expected
    told_once(world, undisturbed)


def test_new_classes_are_told_once_where_nothing_else_was(tmp_path: Path) -> None:
    """No dead letter and no idle flush lies between the parent and the adoption, only the classes that came."""
    world = World(tmp_path)
    world.write(digit_stream(90, clean=True))
    world.learn(max_records=220, snapshots=OFTEN)
    offer(world)
    with kill_at("adopt.committed"), pytest.raises(Killed):
        world.learn(snapshots=OFTEN)
    world.learn(snapshots=OFTEN)
    classes = [json.loads(message.value or b"")["class"] for message in world.events("new_class")]
    assert sorted(classes) == ["0", "1", "2", "3", "4", "5"]


def test_what_is_kept_is_of_the_present_and_what_is_the_networks_is_not(world: World) -> None:
    before = world.newest().state
    offer(world)
    process = world.process(snapshots=OFTEN)
    process.start()
    with kill_at("adopt.committed"), pytest.raises(Killed):
        run(process)
    after = world.newest().state
    parent = parent_of(world).state
    assert fingerprint(cast(StateTree, after["hold_out"])) == fingerprint(cast(StateTree, before["hold_out"]))
    assert after["high_water"] == before["records_consumed"]
    assert after["records_consumed"] == parent["records_consumed"]
    assert fingerprint(cast(StateTree, after["recent_ids"])) == fingerprint(cast(StateTree, parent["recent_ids"]))
    assert world.newest().offsets == parent_of(world).offsets
    assert world.newest().sequence > 3


def test_an_offer_goes_when_two_snapshots_know_of_it(world: World) -> None:
    offer(world)
    world.learn(max_records=1, snapshots=OFTEN)
    assert [waiting.job for waiting in world.offers.waiting()] == [JOB]
    world.learn(max_records=100, snapshots=OFTEN)
    world.learn(snapshots=OFTEN)
    assert world.offers.waiting() == []
    assert len(world.events("adopted")) == 1


def test_counters_count_each_record_once(world: World) -> None:
    before = cast(int, world.newest().state["records_consumed"])
    offer(world)
    metrics = LearnerMetrics(MetricsSettings(), stream=STREAM, branch="main")
    world.learn(observer=metrics, snapshots=OFTEN)
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
    }
    topic = world.partition.topic
    assert found[("palimpsest_samples_consumed_total", topic, "0")] == len(RECORDS) - before
    assert found[("palimpsest_consolidations_total", "adopted")] == 1
    assert found[("palimpsest_consolidations_total", "refused")] == 0
    assert found[("palimpsest_relearning_records",)] == 0


def test_a_second_adoption_whose_parent_was_being_learnt_again_tells_nothing_twice(
    world: World, undisturbed: World
) -> None:
    """What lies after that parent was told before the first adoption, and its own positions lie past that."""
    offer(world, lambda state: state, records=1)
    world.learn(max_records=60, snapshots=OFTEN)
    parent = world.newest()
    assert cast(int, parent.state["records_consumed"]) < max(undisturbed.dead_offsets()) < len(RECORDS)
    assert cast(int, parent.state["records_consumed"]) < cast(int, parent.state["high_water"])
    offer(world, lambda state: state, job="consolidation-2", parent=parent)
    world.learn(snapshots=OFTEN)
    assert len(world.events("adopted")) == 2
    assert world.dead_offsets() == undisturbed.dead_offsets()
    assert model(world) == model(undisturbed)


def test_a_full_disk_puts_an_offer_off_and_learning_goes_on(world: World, undisturbed: World) -> None:
    offer(world, lambda state: state)
    disk = FullDisk(world.folder / "snapshots")
    witness = Witness()
    process = world.process(store=disk, observer=witness, snapshots=OFTEN)
    process.start()
    with pytest.raises(OSError, match="No space left"):
        run(process)  # at its end there is no next try
    assert sum(step.batch.records for step in witness.steps) > 50
    world.learn(snapshots=OFTEN)
    assert model(world) == model(undisturbed)
    told_once(world, undisturbed)


def test_a_partition_that_came_meanwhile_is_learnt_from_its_beginning(world: World) -> None:
    """An offer that is refused drops what was read ahead, of a partition too that nothing was learnt of yet."""
    offer(world, state_id="another")
    source = InMemoryRecordSource(world.log)
    process = world.process(source=source, snapshots=OFTEN)
    process.start()
    world.log.add_partitions(1)
    for number, written in enumerate(RECORDS[:40]):
        headers = tuple((n, f"p1-{number}".encode() if n == "ce_id" else v) for n, v in written.headers)
        world.log.append(written.value, key=written.key, headers=headers, partition=1)
    assert source.refresh_partitions()
    assert len(source.poll(1000, 0.0)) > 40, "read ahead of what was learnt"
    run(process)
    assert world.newest().offsets == {world.log.partitions[0]: len(RECORDS), world.log.partitions[1]: 40}
    assert world.newest().state["records_consumed"] == len(RECORDS) + 40


# -- refusals ----------------------------------------------------------------------------------------------------------


def refused(world: World, undisturbed: World) -> str:
    """Once, and the learner goes on as if nothing had been offered."""
    witness = Witness()
    world.learn(observer=witness, max_records=20, snapshots=OFTEN)
    world.learn(snapshots=OFTEN)
    assert model(world) == model(undisturbed)
    (told,) = world.events("offer_refused")
    assert world.events("adopted") == []
    assert world.dead_offsets() == undisturbed.dead_offsets()
    why = cast(str, json.loads(told.value or b"")["why"])
    assert witness.warnings == [f"the offer of {JOB} was refused: {why}"]
    return why


def test_another_states_offer_is_refused(world: World, undisturbed: World) -> None:
    offer(world, state_id="another")
    assert refused(world, undisturbed) == "it was made of another state: state_id 'another', this one is 'state'"


def test_a_damaged_offer_is_refused(world: World, undisturbed: World) -> None:
    offer(world)
    (waiting,) = world.offers.waiting()
    (waiting.entry.path / waiting.entry.manifest.files[0].name).write_bytes(b"decayed")
    assert refused(world, undisturbed).startswith("it is not whole")


def test_an_offer_that_does_not_fit_the_settings_is_refused(world: World, undisturbed: World) -> None:
    def without_a_term(state: StateTree) -> StateTree:
        other = copy.deepcopy(state)
        del cast("dict[str, Any]", cast("dict[str, Any]", other["learner"])["retention"])["ewc_pp"]
        return other

    offer(world, without_a_term)
    assert "retention terms" in refused(world, undisturbed)


def test_an_offer_whose_parent_is_ahead_is_refused(tmp_path: Path, undisturbed: World) -> None:
    world = begun(tmp_path)
    offer(world, records=100)
    for entry in world.store.entries():
        if cast(int, entry.facts["records_consumed"]) >= 100:
            SnapshotStore(entry.path.parent).remove(entry.path)
    assert "its parent is ahead of this state" in refused(world, undisturbed)


def test_an_offer_from_before_another_adoption_is_refused(world: World) -> None:
    """It would undo that one, without a word."""
    offer(world, job="consolidation-9")
    offer(world, records=100, job="consolidation-10")
    world.learn(snapshots=OFTEN)
    (told,) = world.events("adopted")
    assert json.loads(told.value or b"")["job"] == "consolidation-9", "in the order of their numbers"
    (refused_event,) = world.events("offer_refused")
    why = json.loads(refused_event.value or b"")["why"]
    assert why == f"consolidation-9 was adopted since its parent was written: {AGAIN}"


def test_a_state_that_cannot_be_loaded_is_refused(world: World, undisturbed: World) -> None:
    def without_ids(state: StateTree) -> StateTree:
        return {name: value for name, value in state.items() if name != "recent_ids"}

    offer(world, without_ids)
    assert refused(world, undisturbed) == "its state cannot be loaded: KeyError: 'recent_ids'"


def test_an_offer_before_the_logs_beginning_is_refused(world: World, undisturbed: World) -> None:
    offer(world)
    world.log.truncate_before(world.partition.number, 120)
    assert "retention deleted" in refused(world, undisturbed)


def test_an_offer_of_before_an_erasure_is_refused(world: World, undisturbed: World) -> None:
    def with_an_erasure(state: StateTree) -> StateTree:
        return {**state, "erasures": [{"subject": "00000000000000aa", "until": [["digits.samples", 0, 5]]}]}

    offer(world, with_an_erasure)
    assert "a subject was erased" in refused(world, undisturbed)
