"""How one version did in one role: what it answered, and how much of that was right once true labels came."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

# Classes of whose labels each score keeps counts; those of further ones go into its total alone. Whoever writes labels
# may write any, and a score must not grow with them.
MOST_CLASSES = 1_000


@dataclass(slots=True)
class Tally:
    """Answers of which the true label is known."""

    labelled: int = 0
    right: int = 0

    def add(self, right: bool) -> None:
        self.labelled += 1
        self.right += right

    @property
    def accuracy(self) -> float | None:
        """None where there is no label yet."""
        return self.right / self.labelled if self.labelled else None


class VersionScore:
    """Counts since the version's first answer in its role, and its newest `window` labelled answers.

    An answer that says no more than that the payload could not be read counts as wrong once the label is there.
    """

    def __init__(self, window: int) -> None:
        self.answered = 0
        self.unreadable = 0  # of the answered ones
        self.total = Tally()
        self.classes: dict[str, Tally] = {}  # by true label
        self._recent: deque[tuple[str, bool]] = deque(maxlen=window)  # (true label, right), oldest first

    def add_answer(self, *, readable: bool) -> None:
        self.answered += 1
        self.unreadable += not readable

    def add_label(self, label: str, right: bool) -> None:
        """The true label of one of the answers has come."""
        self.total.add(right)
        if label in self.classes or len(self.classes) < MOST_CLASSES:
            self.classes.setdefault(label, Tally()).add(right)
        self._recent.append((label, right))

    def recent(self) -> Tally:
        """Over the window."""
        return _sum(right for _, right in self._recent)

    def recent_classes(self) -> dict[str, Tally]:
        """Over the window, by true label."""
        found: dict[str, Tally] = {}
        for label, right in self._recent:
            found.setdefault(label, Tally()).add(right)
        return found


def _sum(rights: Iterable[bool]) -> Tally:
    tally = Tally()
    for right in rights:
        tally.add(right)
    return tally
