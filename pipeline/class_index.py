"""Labels and their logit columns: append-only, so that a column means the same class for ever."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import cast

import numpy as np
import numpy.typing as npt

from pipeline.state import StateTree
from pipeline.user_error import UserError


class ClassIndex:
    """{label: column}, in the order in which labels were first trained on. At most `max_classes` of them."""

    def __init__(self, max_classes: int) -> None:
        self.max_classes = max_classes
        self._columns: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._columns)

    def __contains__(self, label: object) -> bool:
        return label in self._columns

    @property
    def names(self) -> list[str]:
        """Labels by column."""
        return list(self._columns)

    @property
    def by_label(self) -> Mapping[str, int]:
        """{label: column}: a live view that cannot be written to."""
        return MappingProxyType(self._columns)

    def add_new(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Give a column to each label that has none, in the order of the labels; returns those.

        All or nothing: UserError where there would be more than `max_classes`.
        """
        new = tuple(dict.fromkeys(label for label in labels if label not in self._columns))
        if not new:
            return new
        if len(self._columns) + len(new) > self.max_classes:
            raise UserError(
                f"label {new[self.max_classes - len(self._columns)]!r} would be class {self.max_classes + 1}: "
                f"raise network.max_classes (now {self.max_classes}) or send fewer classes"
            )
        for label in new:
            self._columns[label] = len(self._columns)
        return new

    def columns(self, labels: Sequence[str]) -> npt.NDArray[np.int64]:
        """(B,) columns of labels that are known."""
        columns = self._columns
        return np.array([columns[label] for label in labels], dtype=np.int64)

    def state(self) -> StateTree:
        return {"names": cast("list[object]", self.names)}  # type: ignore[dict-item]

    def load_state(self, state: StateTree) -> None:
        names = cast(list[str], state["names"])
        assert len(set(names)) == len(names), "a label has two columns"
        if len(names) > self.max_classes:
            raise UserError(
                f"the state holds {len(names)} classes, network.max_classes allows {self.max_classes}: raise it"
            )
        self._columns.clear()  # in place: `by_label` views stay true
        self._columns.update({name: column for column, name in enumerate(names)})
