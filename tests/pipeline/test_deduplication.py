from __future__ import annotations

import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.deduplication import RecentIds, identity
from pipeline.state import fingerprint
from tests.pipeline.evaluation.stored import stored_and_loaded

PROPERTY = settings(max_examples=100)


def test_a_repeat_is_known_until_the_window_has_passed_it() -> None:
    recent = RecentIds(2)
    recent.add(identity("s", "1"))
    assert identity("s", "1") in recent
    recent.add(identity("s", "2"))
    recent.add(identity("s", "3"))  # pushes 1 out
    assert identity("s", "2") in recent
    assert identity("s", "1") not in recent
    assert len(recent) == 2


def test_source_and_id_both_count() -> None:
    recent = RecentIds(10)
    recent.add(identity("a", "b"))
    assert identity("b", "a") not in recent
    assert identity("ab", "") not in recent
    assert identity("", "ab") not in recent


def test_looking_changes_nothing() -> None:
    recent = RecentIds(10)
    assert identity("s", "1") not in recent
    assert identity("s", "1") not in recent
    assert len(recent) == 0


def test_a_repeat_does_not_push_others_out() -> None:
    recent = RecentIds(2)
    for id in ("1", "2", "2", "2"):
        recent.add(identity("s", id))
    assert identity("s", "1") in recent


def test_a_window_of_zero_remembers_nothing() -> None:
    recent = RecentIds(0)
    recent.add(identity("s", "1"))
    assert identity("s", "1") not in recent
    state = stored_and_loaded(recent.state())
    recent.load_state(state)
    assert len(recent) == 0


def test_the_state_is_the_hashes_in_order() -> None:
    recent = RecentIds(2)
    for id in ("x", "y", "z"):
        recent.add(identity("topic", id))
    hashes = recent.state()["hashes"]
    assert isinstance(hashes, Tensor)
    digests = [hashlib.blake2b(f"topic\0{id}".encode(), digest_size=8).digest() for id in ("y", "z")]
    assert [value.to_bytes(8, "big", signed=True) for value in hashes.tolist()] == digests


def test_a_lone_surrogate_is_an_id_like_any_other() -> None:
    recent = RecentIds(2)
    assert identity("s", "\ud800") not in recent
    recent.add(identity("s", "\ud800"))
    assert identity("s", "\ud800") in recent


@PROPERTY
@given(
    window=st.integers(0, 5),
    ids=st.lists(st.integers(0, 8).map(str), max_size=40),
    restored_at=st.integers(0, 40),
)
def test_decisions_are_those_of_a_plain_list_with_a_restart_anywhere(
    window: int, ids: list[str], restored_at: int
) -> None:
    recent = RecentIds(window)
    plain: list[str] = []
    for number, id in enumerate(ids):
        if number == restored_at:
            state = stored_and_loaded(recent.state())
            recent = RecentIds(window)
            recent.load_state(state)
            assert fingerprint(recent.state()) == fingerprint(state)
        assert (identity("s", id) in recent) == (id in plain)
        recent.add(identity("s", id))
        if id not in plain:
            plain = [*plain, id][-window:] if window else []
