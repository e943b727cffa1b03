"""A branch that goes back in time comes to the model that main came to, and main never hears of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from consumers.manifest_facts import ProcessFacts
from consumers.memory_record_source import InMemoryRecordSource
from consumers.rewind import rewind_to_offsets, rewind_to_snapshot, rewound
from model_store.snapshot import OutboxMessage, Snapshot
from model_store.snapshot_store import SnapshotStore
from pipeline.record import Partition
from pipeline.state import Json, fingerprint
from pipeline.user_error import UserError
from tests.consumers import learner_world
from tests.consumers.digit_records import digit_stream
from tests.consumers.learner_world import STREAM, World, learner_settings

RECORDS = digit_stream(40)
ONE = Partition("digits.samples", 0)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A main that was idle once in the midst (after 50 records, with a batch begun) and once at the end."""
    world = World(tmp_path)
    world.write(RECORDS[:53])
    world.learn(snapshots={"every_records": 20, "keep": 50})
    world.write(RECORDS[53:])
    world.learn(snapshots={"every_records": 20, "keep": 50})
    assert len(world.newest().state["decisions"]) == 2  # type: ignore[arg-type]
    return world


def nothing() -> None:
    """Has the branch's group committed."""


def branch_store(world: World) -> SnapshotStore:
    return SnapshotStore(world.folder / "branch" / "snapshots")


def learn_on(world: World, store: SnapshotStore, **parts: Any) -> Snapshot:
    """As `palimpsest learn` does: the state keeps the id that its newest snapshot has."""
    state_id = store.entries()[-1].facts["state_id"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner_world, "ProcessFacts", lambda **facts: ProcessFacts(**{**facts, "state_id": state_id}))
        world.learn(branch="past", store=store, **parts)
    newest = store.newest_whole().snapshot
    assert newest is not None
    return newest


def from_offsets(world: World, where: str, *, branch: str = "past", store: SnapshotStore | None = None) -> bool:
    source = InMemoryRecordSource(world.log)
    return rewind_to_offsets(
        store or branch_store(world),
        where,
        process=ProcessFacts(
            stream=STREAM,
            branch=branch,
            topic=world.log.topic,
            cluster_id=world.cluster_id,
            topic_id=world.topic_id,
            state_id="",
        ),
        settings=world.settings,
        beginning=source.beginning_offsets,
        end=source.end_offsets,
        at_time=lambda milliseconds: {ONE: milliseconds // 1000},
        committed=world.commit_log(branch).committed,
    )


def test_a_branch_that_goes_back_comes_to_mains_model_bit_for_bit(world: World) -> None:
    first = world.store.entries()[0]
    assert first.offsets[world.partition] < 50, "before the first idle flush"
    store = branch_store(world)
    assert rewind_to_snapshot(
        store,
        world.store,
        str(first.sequence),
        stream=STREAM,
        branch="past",
        settings=world.settings,
        committed=nothing,
    )
    messages = list(world.commits.messages)
    newest = learn_on(world, store)
    assert newest.fingerprint() == world.newest().fingerprint()
    assert world.commits.messages == messages, "a branch tells nothing"
    assert newest.facts["branch"] == "past"
    assert newest.facts["state_id"] != world.newest().facts["state_id"]


def test_without_what_was_decided_since_it_would_be_another_model(world: World) -> None:
    """The control of the test above: the flush in the midst is what makes the difference."""
    entry = world.store.entries()[0]
    store = branch_store(world)
    old = world.store.load(entry)
    store.write(rewound(old, branch="past", state_id="x", newest=old, settings=world.settings))
    newest = learn_on(world, store)
    assert newest.fingerprint() != world.newest().fingerprint()


def test_rewinding_changes_whose_state_it_is_and_nothing_of_it(world: World) -> None:
    old = replace(world.store.load(world.store.entries()[0]), outbox=(OutboxMessage("t", None, b"x"),))
    told: dict[str, Json] = {
        **old.facts,
        "version": {"trigger": "periodic"},
        "report_positions": [["t", 0, 5]],
        "told_since": [1],
    }
    erasures: Json = [{"subject": "ab", "until": [["t", 0, 3]]}]
    newest = replace(world.newest(), state={**world.newest().state, "erasures": erasures})
    new = rewound(replace(old, facts=told), branch="past", state_id="new", newest=newest, settings=world.settings)
    assert (new.generation, new.sequence, new.outbox, new.offsets) == (0, 0, (), old.offsets)
    facts: dict[str, Json] = {
        **old.facts,
        "branch": "past",
        "state_id": "new",
        "version": None,
        "report_positions": [],
        "told_since": None,
        "rewound_from": {"state_id": "state", "generation": old.generation, "sequence": old.sequence},
    }
    assert new.facts == facts
    assert new.state["decisions"] == newest.state["decisions"] != old.state["decisions"]
    assert new.state["erasures"] == erasures
    same = {**new.state, "decisions": old.state["decisions"], "erasures": old.state.get("erasures")}
    assert replace(new, state=same).fingerprint() == replace(old, state={"erasures": None, **old.state}).fingerprint()


def test_the_same_rewind_again_goes_on_and_any_other_is_refused(world: World) -> None:
    first, second = world.store.entries()[:2]
    store = branch_store(world)

    def rewind(which: str, branch: str = "past") -> bool:
        return rewind_to_snapshot(
            store, world.store, which, stream=STREAM, branch=branch, settings=world.settings, committed=nothing
        )

    assert rewind(f"{first.generation}-{first.sequence}")
    assert not rewind(str(first.sequence)), "killed before it learnt anything"
    learnt = learn_on(world, store, snapshots={"every_records": 20, "keep": 2, "keep_bases": 0})
    assert store.entries()[0].sequence > 0, "the first snapshot was pruned"
    assert not rewind(str(first.sequence))
    for which, branch in ((str(second.sequence), "past"), (str(first.sequence), "other")):
        with pytest.raises(UserError, match="holds snapshots that did not begin with snapshot"):
            rewind(which, branch)
    with pytest.raises(UserError, match="did not begin with a new model at 0:5"):
        from_offsets(world, "0:5", store=store)
    newest = store.newest_whole().snapshot
    assert newest is not None
    assert newest.fingerprint() == learnt.fingerprint()
    with pytest.raises(UserError, match="did not begin"):  # an ordinary state
        rewind_to_snapshot(
            world.store,
            world.store,
            str(first.sequence),
            stream=STREAM,
            branch="past",
            settings=world.settings,
            committed=nothing,
        )


@pytest.mark.parametrize(
    ("which", "stream", "branch", "problem"),
    [
        ("999", STREAM, "past", r"holds no snapshot 999; there is 1-1, 1-2"),
        ("7-1", STREAM, "past", r"holds no snapshot 7-1; there is 1-1"),
        ("newest", STREAM, "past", r"'newest' is not SEQUENCE or GENERATION-SEQUENCE; there is 1-1"),
        ("1", STREAM, "main", r"branch 'main' is never rewound"),
        ("1", STREAM, "a b", r"branch name 'a b' is not 1 to 235 letters"),
        ("1", "faces", "past", r"holds the state of stream 'digits', not 'faces'"),
    ],
)
def test_what_cannot_be_rewound_to_is_named(world: World, which: str, stream: str, branch: str, problem: str) -> None:
    store = branch_store(world)
    with pytest.raises(UserError, match=problem):
        rewind_to_snapshot(
            store, world.store, which, stream=stream, branch=branch, settings=world.settings, committed=nothing
        )
    assert store.entries() == []


def test_a_sequence_of_two_generations_must_be_named_whole(world: World) -> None:
    newest = world.newest()
    world.store.write(replace(newest, generation=newest.generation + 1))
    which = f"{newest.generation}-{newest.sequence}"
    with pytest.raises(UserError, match=f"more than once; choose of {which}"):
        rewind_to_snapshot(
            branch_store(world),
            world.store,
            str(newest.sequence),
            stream=STREAM,
            branch="past",
            settings=world.settings,
            committed=nothing,
        )
    assert rewind_to_snapshot(
        branch_store(world),
        world.store,
        which,
        stream=STREAM,
        branch="past",
        settings=world.settings,
        committed=nothing,
    )


def test_a_snapshot_that_is_not_whole_is_named(world: World) -> None:
    entry = world.store.entries()[0]
    (entry.path / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"snapshot 1-1 of .* is not whole \(state.json .*there is 1-1, 1-2"):
        rewind_to_snapshot(
            branch_store(world),
            world.store,
            "1",
            stream=STREAM,
            branch="past",
            settings=world.settings,
            committed=nothing,
        )


@pytest.mark.parametrize(
    ("where", "first"), [("0:30", 30), ("beginning", 0), ("end", -1), ("1970-01-01T00:00:40Z", 40)]
)
def test_a_new_model_begins_at_any_offset(world: World, where: str, first: int) -> None:
    end = world.newest().offsets[world.partition]
    first = end if first < 0 else first
    store = branch_store(world)
    assert from_offsets(world, where)
    assert not from_offsets(world, where)
    (entry,) = store.entries()
    assert entry.offsets == {world.partition: first}
    assert not entry.facts["classes"]
    world.write(digit_stream(10, seed=5, clean=True))
    newest = learn_on(world, store)
    assert newest.state["records_consumed"] == newest.offsets[world.partition] - first > 0
    assert not from_offsets(world, where), "the log has grown, and it is the same rewind"
    # The same model as of one that never knew of anything before.
    other = World(world.folder / "other", learner_settings())
    for offset in range(first, world.log.end(world.partition)):
        record = world.log.at(world.partition, offset)
        assert record is not None
        other.log.append(record.value, key=record.key, headers=record.headers)
    other.learn()
    ours, theirs = newest.state["learner"], other.newest().state["learner"]
    assert fingerprint({"learner": ours}) == fingerprint({"learner": theirs})
    assert any(isinstance(leaf, torch.Tensor) for leaf in _leaves(ours))


def _leaves(tree: object) -> list[object]:
    return [leaf for value in tree.values() for leaf in _leaves(value)] if isinstance(tree, dict) else [tree]


@pytest.mark.parametrize(
    ("where", "problem"),
    [
        ("0:99999", r"offset 99999 of digits.samples-0 is not in the log; there is 0:0 to 0:\d+"),
        ("1:0", r"partition 1 of digits.samples is not there; there is 0:0 to"),
        ("0:1,0:2", r"partition 0 of digits.samples stands there twice"),
        ("0:-1", r"'0:-1' is not PARTITION:OFFSET"),
        ("yesterday", r"'yesterday' is not PARTITION:OFFSET.*2026-01-31T12:00:00Z"),
        ("2026-01-31T12:00:00", r"is not PARTITION:OFFSET"),
    ],
)
def test_offsets_that_are_not_there_are_named(world: World, where: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        from_offsets(world, where)
    assert branch_store(world).entries() == []
    with pytest.raises(UserError, match="branch 'main' is never rewound"):
        from_offsets(world, where, branch="main")


def test_other_settings_of_the_optimizer_may_be_tried_and_other_hold_outs_may_not(world: World) -> None:
    """What was held out would be trained on."""
    first = world.store.entries()[0]
    which, store = str(first.sequence), branch_store(world)
    another = learner_settings(hold_out={"share": 0.3})
    with pytest.raises(UserError, match=r"setting learner.hold_out.share is 0.3, but this state was made with 0.15"):
        rewind_to_snapshot(store, world.store, which, stream=STREAM, branch="past", settings=another, committed=nothing)
    for misfit in (learner_settings(retention={"er": {}}), learner_settings(replay={"capacity": 7, "draw_size": 2})):
        with pytest.raises(UserError, match="use the"):
            rewind_to_snapshot(
                store, world.store, which, stream=STREAM, branch="past", settings=misfit, committed=nothing
            )
        assert store.entries() == []
    slower = learner_settings(optimizer={"learning_rate": 0.001}, retention={"der_pp": {"alpha": 0.9}, "ewc_pp": {}})
    assert rewind_to_snapshot(
        store, world.store, which, stream=STREAM, branch="past", settings=slower, committed=nothing
    )
    newest = learn_on(world, store, settings=slower)
    assert newest.offsets == world.newest().offsets
    assert fingerprint({"state": newest.state}) != fingerprint({"state": world.newest().state})


@pytest.mark.parametrize("way", ["snapshot", "offsets"])
def test_a_branch_that_was_used_before_is_refused(world: World, way: str) -> None:
    """Begun in another folder it would fence the learner of the first one."""
    used, which = SnapshotStore(world.folder / "used" / "snapshots"), str(world.store.entries()[0].sequence)

    def begin(store: SnapshotStore, branch: str = "past") -> bool:
        if way == "offsets":
            return from_offsets(world, "0:7", store=store, branch=branch)
        committed = world.commit_log(branch).committed
        return rewind_to_snapshot(
            store, world.store, which, stream=STREAM, branch=branch, settings=world.settings, committed=committed
        )

    assert begin(used)
    learn_on(world, used, max_records=20)
    assert not begin(used), "in its own folder it goes on"
    epochs = dict(world.commits.epochs)
    with pytest.raises(UserError, match=r"branch 'past' .* was used before.*--group palimpsest.digits.past.learner"):
        begin(branch_store(world))
    assert not branch_store(world).entries()
    assert world.commits.epochs == epochs
    assert begin(branch_store(world), "unused")


def test_what_was_decided_about_jobs_is_not_the_branchs(world: World) -> None:
    """Jobs are named by sequences, which the branch counts anew: an answer to it would be taken for an old one."""
    newest = world.newest()
    decisions = [*newest.state["decisions"], {"kind": "refusal", "job": "consolidation-3", "why": "by hand"}]  # type: ignore[misc]
    newest = replace(newest, state={**newest.state, "decisions": decisions})
    first = rewound(world.newest(), branch="past", state_id="s", newest=newest, settings=world.settings)
    assert [decision["kind"] for decision in first.state["decisions"]] == ["idle_flush", "idle_flush"]  # type: ignore[union-attr, call-overload, index]
    assert first.facts["decided_jobs"] == []
