"""How well the present network has learnt the new classes: what decides between growing it and folding it back.

EDE-Net grows only where training has not come far enough. Whether it has, the hold-outs say, and only those of an
evaluation from after the new classes have settled: an earlier one looks at a class in its first records, when every
network is bad at it. Where evaluations leave classes out (evaluation/turns.py), that is the newest look at each class.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from pipeline.state import StateTree


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassSeen:
    """What stands of one class after an evaluation."""

    accuracy: float  # 0 to 1, on its hold-out
    at_records: int  # consumed when it was looked at: earlier than the evaluation where its turn was
    is_judged: bool  # on enough samples to say anything, or will be in its turn; others stay out


class NewClassAccuracy:
    """The mean over the new classes, as soon as all that can be judged have been. Part of the trigger's state."""

    def __init__(self) -> None:
        self.is_known = False  # an evaluation from late enough has spoken
        self.mean: float | None = None  # 0 to 1; None: no new class has enough held-out samples to be judged

    def forget(self) -> None:
        """Others are new from now on."""
        self.is_known, self.mean = False, None

    def observe(self, new_classes: Sequence[ClassSeen | None], *, settled_at: int) -> None:
        """An evaluation. `new_classes`: what stands of each of them, None of those that hold out nothing. `settled_at`:
        records consumed from which on a look at them counts. One that still waits for its turn keeps the answer of the
        evaluation before, if there was one."""
        judged = [seen for seen in new_classes if seen is not None and seen.is_judged]
        if all(seen.at_records >= settled_at for seen in judged):
            self.is_known = True
            self.mean = statistics.fmean(seen.accuracy for seen in judged) if judged else None

    def is_below(self, accuracy: float) -> bool:
        """Whether the new classes are learnt worse than that, which of 1 they always are: nobody knows that no record
        would be taken for another. Of classes that nobody can judge nothing is said."""
        return self.mean is not None and (self.mean < accuracy or accuracy >= 1)

    def state(self) -> StateTree:
        return {"is_known": self.is_known, "mean": self.mean}

    def load_state(self, state: StateTree) -> None:
        """Inverse of `state`; of an empty one: nothing has spoken."""
        self.is_known = cast(bool, state.get("is_known", False))
        self.mean = cast("float | None", state.get("mean"))
