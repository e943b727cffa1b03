from __future__ import annotations

import numpy as np
import pytest

from pipeline.class_index import ClassIndex
from pipeline.user_error import UserError


def test_columns_follow_the_order_of_first_appearance() -> None:
    index = ClassIndex(max_classes=10)
    assert index.add_new(["cat", "dog", "cat", "ünï/code"]) == ("cat", "dog", "ünï/code")
    assert index.add_new(["dog", "ant"]) == ("ant",)
    assert index.names == ["cat", "dog", "ünï/code", "ant"]
    columns = index.columns(["ant", "cat", "ant"])
    assert columns.tolist() == [3, 0, 3]
    assert columns.dtype == np.int64
    assert "dog" in index
    assert "cow" not in index
    assert len(index) == 4


def test_too_many_classes_change_nothing() -> None:
    index = ClassIndex(max_classes=3)
    index.add_new(["a", "b"])
    with pytest.raises(UserError, match=r"label 'd' would be class 4: raise network.max_classes \(now 3\)"):
        index.add_new(["c", "d"])
    assert index.names == ["a", "b"]
    assert index.add_new(["c", "a"]) == ("c",)


def test_the_view_is_live_and_read_only() -> None:
    index = ClassIndex(max_classes=3)
    view = index.by_label
    index.add_new(["a"])
    assert view == {"a": 0}
    with pytest.raises(TypeError):
        view["b"] = 1  # type: ignore[index]
    restored = ClassIndex(max_classes=3)
    held = restored.by_label
    restored.load_state(index.state())
    assert held == {"a": 0}


def test_state_of_more_classes_than_allowed() -> None:
    index = ClassIndex(max_classes=3)
    index.add_new(["a", "b", "c"])
    with pytest.raises(UserError, match=r"holds 3 classes, network\.max_classes allows 2"):
        ClassIndex(max_classes=2).load_state(index.state())
