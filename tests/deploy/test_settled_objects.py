from __future__ import annotations

import gc

import pytest

from deploy.settled_objects import settled


def test_what_is_alive_is_left_alone_until_the_end() -> None:
    before = gc.get_freeze_count()
    with settled():
        assert gc.get_freeze_count() > before + 1_000, "modules alone are more objects than that"
    assert gc.get_freeze_count() == 0


def test_also_where_it_ends_by_an_error() -> None:
    with pytest.raises(KeyError), settled():
        raise KeyError
    assert gc.get_freeze_count() == 0
