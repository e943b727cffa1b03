"""A subject's raw samples leave the state, and a log that still holds them is read without them.

The state knows an erased subject by the keyed hash that chooses hold-outs (`HoldOut.key`), never by name. That makes a
pseudonym of it, no secret: whoever knows the salt can try names.

What the network learnt from the subject stays in its weights; only raw samples, and what was stored beside them, go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from pipeline.evaluation.hold_out import without_key
from pipeline.record import Partition
from pipeline.reservoir import UNKNOWN_SUBJECT, subjects_of, without_rows
from pipeline.state import Json, StateTree


class Erasures:
    """Which subjects were erased, and up to where in the log: what was written before is skipped, later is not.

    Offsets are exclusive ends. A partition that did not exist at the erasure has none: its records are ordinary.
    """

    def __init__(self) -> None:
        self._until: dict[int, dict[Partition, int]] = {}

    def __bool__(self) -> bool:
        return bool(self._until)

    def add(self, subject: int, until: Mapping[Partition, int]) -> None:
        """Erase this subject's records before these offsets; erased twice, the later offset of each partition holds."""
        kept = self._until.setdefault(subject, {})
        for partition, offset in until.items():
            kept[partition] = max(kept.get(partition, 0), offset)

    def covers(self, subject: int, partition: Partition, offset: int) -> bool:
        """Whether a record of this subject at this place is to be skipped."""
        return offset < self._until.get(subject, {}).get(partition, 0)

    def state(self) -> list[Json]:
        """[{"subject": 16 hexadecimal digits, "until": [[topic, partition, offset], ...]}, ...], sorted."""
        return [
            {
                "subject": subject_hex(subject),
                "until": [[place.topic, place.number, offset] for place, offset in sorted(until.items())],
            }
            for subject, until in sorted(self._until.items())
        ]

    def load_state(self, state: Json) -> None:
        """Inverse of `state`; an empty list for the state of a release that erased nothing."""
        self._until = {}
        for erasure in cast("list[dict[str, Json]]", state):
            until = cast("list[tuple[str, int, int]]", erasure["until"])
            self.add(
                subject_from_hex(cast(str, erasure["subject"])),
                {Partition(topic, number): offset for topic, number, offset in until},
            )


def subject_hex(subject: int) -> str:
    """The signed key as 16 hexadecimal digits."""
    return f"{subject % 2**64:016x}"


def subject_from_hex(text: str) -> int:
    """Inverse of `subject_hex`."""
    value = int(text, 16)
    return value - 2**64 if value >= 2**63 else value


def named_subject(headers: Sequence[tuple[str, bytes | None]]) -> str | None:
    """The ce_subject among a record's headers, as the decoder reads it; None where there is none that can be read.

    For records that no sample came of: they name whom they are about all the same.
    """
    # Headers may be null whatever the type says: other clients write them.
    values = [value for name, value in headers or () if name.lower() == "ce_subject" and value is not None]
    try:
        return values[-1].decode() or None if values else None
    except UnicodeDecodeError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """What an erasure took out of a state."""

    reservoir_rows: int
    held_out_samples: int


def erased(
    state: StateTree, subject: int, until: Mapping[Partition, int], *, unknown_too: bool = False
) -> tuple[StateTree, Removed]:
    """A stream learner's state without the subject's raw samples, which skips its records before `until`.

    A tree in, a tree out: no network is built, so that kept snapshots of any age are rewritten alike. The tree given is
    left as it is; what did not change is shared with it. `unknown_too`: also rows that may be anybody's
    (`unknown_rows`).

    1. The reservoir's rows.
    2. The hold-outs' samples.
    3. The erasure itself, for the replay.
    """
    left = dict(state)
    # 1.
    rows = 0
    reservoir = _reservoir(state)
    if reservoir is not None:
        subjects_N = subjects_of(reservoir)
        removed_N = subjects_N == subject
        if unknown_too:
            removed_N |= subjects_N == UNKNOWN_SUBJECT
        rows = int(removed_N.sum())
        if rows:
            left["learner"] = {**cast(StateTree, state["learner"]), "reservoir": without_rows(reservoir, removed_N)}
    # 2.
    left["hold_out"], samples = without_key(cast(StateTree, state["hold_out"]), subject)
    # 3.
    erasures = Erasures()
    erasures.load_state(cast(Json, state.get("erasures", [])))
    erasures.add(subject, until)
    left["erasures"] = erasures.state()
    return left, Removed(reservoir_rows=rows, held_out_samples=samples)


def unknown_rows(state: StateTree) -> int:
    """Rows of the reservoir that were stored by a release which did not note whose they are."""
    reservoir = _reservoir(state)
    return 0 if reservoir is None else int((subjects_of(reservoir) == UNKNOWN_SUBJECT).sum())


def _reservoir(state: StateTree) -> StateTree | None:
    """None while nothing was learnt."""
    learner = cast(StateTree, state["learner"])
    return cast(StateTree, learner["reservoir"]) if learner else None
