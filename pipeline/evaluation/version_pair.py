"""How a champion and a challenger did on the same requests."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from pipeline.evaluation.version_score import MOST_CLASSES


@dataclass(frozen=True, slots=True, kw_only=True)
class PairScore:
    """What a promotion is decided by: the two versions on the requests that both answered."""

    champion_version: int
    challenger_version: int
    answered: int
    agreement: float | None  # the share of `answered` with the same label; None where `answered` is 0
    labelled: int  # of `answered`, those whose true label came in time
    champion_accuracy: float | None  # over `labelled`; None where it is 0
    challenger_accuracy: float | None


@dataclass(slots=True)
class PairTally:
    """Requests that both answered, and of which the true label is known."""

    labelled: int = 0
    champion_right: int = 0
    challenger_right: int = 0

    def add(self, champion_right: bool, challenger_right: bool) -> None:
        self.labelled += 1
        self.champion_right += champion_right
        self.challenger_right += challenger_right

    @property
    def difference(self) -> float | None:
        """The challenger's accuracy minus the champion's, from -1 to 1; None where there is no label yet."""
        return (self.challenger_right - self.champion_right) / self.labelled if self.labelled else None


class VersionPair:
    """Counts since the first request that both answered, and the newest `window` ones.

    A request whose payload neither could read is left out: nothing was said that could be compared. Where only one of
    the two could read it, they differ.
    """

    def __init__(self, window: int) -> None:
        self.answered = 0
        self.agreed = 0
        self.total = PairTally()
        self.classes: dict[str, PairTally] = {}  # by true label
        self._recent_agreed: deque[bool] = deque(maxlen=window)
        self._recent_labelled: deque[tuple[str, bool, bool]] = deque(maxlen=window)  # as `add_label`

    def add_answers(self, *, agreed: bool) -> None:
        self.answered += 1
        self.agreed += agreed
        self._recent_agreed.append(agreed)

    def add_label(self, label: str, champion_right: bool, challenger_right: bool) -> None:
        """The true label of one of the requests has come."""
        self.total.add(champion_right, challenger_right)
        if label in self.classes or len(self.classes) < MOST_CLASSES:
            self.classes.setdefault(label, PairTally()).add(champion_right, challenger_right)
        self._recent_labelled.append((label, champion_right, challenger_right))

    def recent_agreement(self) -> float | None:
        """Over the window; None where it is empty."""
        return sum(self._recent_agreed) / len(self._recent_agreed) if self._recent_agreed else None

    def recent_classes(self) -> dict[str, PairTally]:
        """Over the window, by true label."""
        found: dict[str, PairTally] = {}
        for label, champion_right, challenger_right in self._recent_labelled:
            found.setdefault(label, PairTally()).add(champion_right, challenger_right)
        return found
