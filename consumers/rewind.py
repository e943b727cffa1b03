"""Time travel on a branch, never on main: a model as it once was, or a new one, goes on from another place of the log.

A snapshot is the whole state, so that rewinding only puts a first one (generation 0, sequence 0) into the branch's own
empty store; the ordinary start finds it as the newest whole one, and knows nothing of this file.

The id of such a state is made of what was asked for. Whoever asks for the same again, such as a supervisor that starts
the same command line once more, goes on with what the branch has learnt since.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from consumers import topics
from consumers.branch_name import check_branch_name
from consumers.commit_log import Committed, transactional_id
from consumers.manifest_facts import ProcessFacts, manifest_facts, settings_facts
from consumers.state_checks import check_settings
from model_store.manifest import NotWhole
from model_store.snapshot import Snapshot
from model_store.snapshot_choice import chosen_snapshot, listed
from model_store.snapshot_store import SnapshotStore
from pipeline.codec.cloud_event import unix_seconds
from pipeline.record import Partition
from pipeline.settings import LearnerSettings
from pipeline.settings_section import fixed_values
from pipeline.stream_learner import StreamLearner
from pipeline.user_error import UserError

if TYPE_CHECKING:
    from pipeline.state import Json, StateTree

_OFFSETS = re.compile(r"\d{1,9}:\d{1,18}(,\d{1,9}:\d{1,18})*", re.ASCII)
# What was decided about the log after the moment that is gone back to, and holds for whoever learns it again: idle
# flushes, so that the branch comes to the very model that decided them; subjects that asked to be forgotten.
_DECIDED_SINCE = ("decisions", "erasures")
# Not what was decided about jobs: they are named by the sequences of the state they were made of, and the branch counts
# its own from the beginning.
_ABOUT_JOBS = ("adoption", "refusal")


# Fixed for a state, since they shape its model; a branch's first may have others, which is what a branch is for.
# (Another set of retention terms, another capacity or sampling, an average more or less are refused when the state is
# loaded.) Not those of the
# hold-outs: what was held out would be trained on.
_MAY_DIFFER = (
    "optimizer.",
    "augmentation.",
    "averaging.",
    "retention",
    "replay.",
    "incoming_loss",
    "batch_size",
    "max_records_per_batch",
)


def rewind_to_snapshot(
    store: SnapshotStore,
    origin: SnapshotStore,
    which: str,
    *,
    stream: str,
    branch: str,
    settings: LearnerSettings,
    committed: Callable[[], Committed | None],
) -> bool:
    """Let the branch begin where a snapshot of another state stands; False: it has begun there before, and goes on.

    `which`: SEQUENCE or GENERATION-SEQUENCE, as `palimpsest snapshots` shows them. `origin` is only read. `settings`:
    of the branch; those of the optimizer, the batches and the retention terms may be others than the state's.
    `committed()`: what the branch's group has committed; asked where there is something to begin.
    Raises `UserError`, `BrokerUnavailable`, and `OSError` where the snapshot cannot be written.
    """
    _check_branch(branch)
    entry = chosen_snapshot(origin, which, option="--from-snapshot", state_option="--from-state")
    if entry.facts.get("stream") != stream:
        raise UserError(
            f"{origin.folder} holds the state of stream {entry.facts.get('stream')!r}, not {stream!r}; "
            "give another --from-state"
        )
    asked = f"{stream}/{branch}/{entry.facts.get('state_id')}/{entry.generation}-{entry.sequence}"
    state_id = uuid.uuid5(uuid.NAMESPACE_URL, asked).hex
    if not _is_new(store, state_id, f"snapshot {entry.generation}-{entry.sequence} of {origin.folder}"):
        return False
    _check_unused(committed(), stream, branch)
    fixed = fixed_values(settings)
    check_settings(entry.facts, {path: value for path, value in fixed.items() if not path.startswith(_MAY_DIFFER)})
    newest = origin.newest_whole().snapshot
    try:
        snapshot = origin.load(entry)
    except NotWhole as problem:
        raise UserError(
            f"snapshot {entry.generation}-{entry.sequence} of {origin.folder} is not whole ({problem.why}); "
            f"there is {listed(origin.entries())}"
        ) from None
    newest = snapshot if newest is None else newest
    first = rewound(snapshot, branch=branch, state_id=state_id, newest=newest, settings=settings)
    StreamLearner(settings).load_state(first.state)  # refused now, or the folder would be of no use with any settings
    store.write(first)
    return True


def rewind_to_offsets(
    store: SnapshotStore,
    where: str,
    *,
    process: ProcessFacts,
    settings: LearnerSettings,
    beginning: Callable[[], Mapping[Partition, int]],
    end: Callable[[], Mapping[Partition, int]],
    at_time: Callable[[int], Mapping[Partition, int]],
    committed: Callable[[], Committed | None],
) -> bool:
    """Let the branch begin with a new model at these offsets; False: it has begun there before, and goes on.

    `where`: PARTITION:OFFSET[,...] (partitions that are not named are read from their beginning), `beginning`, `end`,
    or an RFC 3339 time. `beginning()` and `end()` give the log's offsets, `at_time(ms)` the first offsets of records
    that are not older; they are asked where the answer is needed, as is `committed()`. `process.state_id` is not used.
    Raises as `rewind_to_snapshot`.
    """
    _check_branch(process.branch)
    where = ",".join(sorted(part.strip() for part in where.split(",")))
    state_id = uuid.uuid5(uuid.NAMESPACE_URL, f"{process.stream}/{process.branch}/{process.topic_id}/{where}").hex
    if not _is_new(store, state_id, f"a new model at {where}"):
        return False
    _check_unused(committed(), process.stream, process.branch)
    learner = StreamLearner(settings)
    facts = manifest_facts(replace(process, state_id=state_id), learner, settings_facts(settings), last_records={})
    store.write(
        Snapshot(
            generation=0,
            sequence=0,
            state=learner.state(),
            offsets=_offsets(where, process.topic, beginning(), end(), at_time),
            facts={**facts, "rewound_to": where},
        )
    )
    return True


def rewound(snapshot: Snapshot, *, branch: str, state_id: str, newest: Snapshot, settings: LearnerSettings) -> Snapshot:
    """The same state at the same offsets as the first snapshot of another branch: nothing told, nothing to be told.

    What `newest`, a later snapshot of the same state, had decided about the log since then is obeyed.
    """
    state: StateTree = {
        **snapshot.state,
        **{name: newest.state[name] for name in _DECIDED_SINCE if name in newest.state},
    }
    decisions = cast("list[dict[str, Json]]", state["decisions"])
    state["decisions"] = cast("Json", [decision for decision in decisions if decision["kind"] not in _ABOUT_JOBS])
    return Snapshot(
        generation=0,
        sequence=0,
        state=state,
        offsets=snapshot.offsets,
        facts={
            **snapshot.facts,
            **settings_facts(settings),
            "branch": branch,
            "state_id": state_id,
            "version": None,
            "decided_jobs": [],
            "report_positions": [],
            "told_since": None,
            "rewound_from": {
                "state_id": snapshot.facts.get("state_id"),
                "generation": snapshot.generation,
                "sequence": snapshot.sequence,
            },
        },
    )


def _check_branch(branch: str) -> None:
    if branch == topics.MAIN_BRANCH:
        raise UserError(
            "branch 'main' is never rewound: what it told stands in the stream's topics and in the registry; "
            "give another --branch"
        )
    check_branch_name(branch)


def _check_unused(committed: Committed | None, stream: str, branch: str) -> None:
    """What begins anew would fence whoever runs this branch from another folder, and go on under its commits."""
    if committed is not None and committed.sequence > 0:
        raise UserError(
            f"branch {branch!r} of stream {stream!r} was used before: its snapshot {committed.sequence} is committed, "
            "and lies in another folder; give that --state, or another --branch, or end its learner and delete its "
            "group: `kafka-consumer-groups.sh --bootstrap-server HOST:PORT --delete --group "
            f"{transactional_id(stream, branch)}`"
        )


def _is_new(store: SnapshotStore, state_id: str, place: str) -> bool:
    """Whether the store is empty. Raises `UserError` where it holds what has not begun at this place."""
    entries, broken = store.entries(), store.broken()
    if not entries and not broken:
        return True
    if not entries or entries[-1].facts.get("state_id") != state_id:
        raise UserError(f"{store.folder} holds snapshots that did not begin with {place}; give an empty --state")
    return False


def _offsets(
    where: str,
    topic: str,
    beginning: Mapping[Partition, int],
    end: Mapping[Partition, int],
    at_time: Callable[[int], Mapping[Partition, int]],
) -> dict[Partition, int]:
    if where in ("beginning", "end"):
        return dict(beginning if where == "beginning" else end)
    if _OFFSETS.fullmatch(where) is None:
        seconds = unix_seconds(where)
        if seconds is None or seconds < 0:
            raise UserError(
                f"--from-offsets {where!r} is not PARTITION:OFFSET[,...], an RFC 3339 time such as "
                "2026-01-31T12:00:00Z, beginning or end"
            )
        return {**end, **at_time(int(seconds * 1000))}
    offsets = dict(beginning)
    named: set[Partition] = set()
    for pair in where.split(","):
        number, _, offset = pair.partition(":")
        partition = Partition(topic, int(number))
        if partition not in beginning or partition in named:
            problem = "stands there twice" if partition in named else "is not there"
            raise UserError(
                f"--from-offsets {where}: partition {number} of {topic} {problem}; "
                f"there is {_log_shown(beginning, end)}"
            )
        named.add(partition)
        if not beginning[partition] <= int(offset) <= end[partition]:
            raise UserError(
                f"--from-offsets {where}: offset {offset} of {partition} is not in the log; "
                f"there is {_log_shown(beginning, end)}"
            )
        offsets[partition] = int(offset)
    return offsets


def _log_shown(beginning: Mapping[Partition, int], end: Mapping[Partition, int]) -> str:
    """0:5 to 0:17, ..."""
    return ", ".join(f"{p.number}:{beginning[p]} to {p.number}:{end[p]}" for p in sorted(beginning))
