from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.first_burst import FirstBursts
from pipeline.settings import EvaluationSettings
from pipeline.state import fingerprint
from tests.pipeline.evaluation.stored import stored_and_loaded

PROPERTY = settings(max_examples=100)


def bursts(records: int = 200) -> FirstBursts:
    return FirstBursts(EvaluationSettings(burst_records=records))


def test_a_burst_ends_with_its_last_record() -> None:
    running = bursts(records=25)
    assert running.observe({"a": 10}) == []
    assert running.observe({"a": 10, "b": 3}) == []
    assert running.observe({"a": 5, "b": 3}) == ["a"]
    assert running.observe({"a": 100}) == []  # only the first burst ends


def test_a_burst_ends_where_its_share_fell_to_a_tenth_of_its_peak() -> None:
    """30 records of a in three steps. The window holds 500 records: a's steps leave with the 48th, 49th and 50th step
    of b, and a tenth of 30 is 3, so the 50th ends it."""
    running = bursts(records=10_000)
    for _ in range(3):
        assert running.observe({"a": 10}) == []
    for step in range(1, 50):
        assert running.observe({"b": 10}) == [], step
    assert running.observe({"b": 10}) == ["a"]


def test_a_tenth_is_enough() -> None:
    running = bursts(records=10_000)
    running.observe({"a": 27})
    running.observe({"a": 3, "b": 470})
    assert running.observe({"b": 27}) == ["a"]  # 3 of 500 left


def test_more_than_a_tenth_is_not() -> None:
    running = bursts(records=10_000)
    running.observe({"a": 26})
    running.observe({"a": 4, "b": 470})
    assert running.observe({"b": 30}) == []


def test_a_rare_class_does_not_end_by_its_share() -> None:
    running = bursts(records=40)
    running.observe({"rare": 19})
    for _ in range(100):
        assert running.observe({"common": 10}) in ([], ["common"])
    assert running.observe({"rare": 21}) == ["rare"]


def test_the_first_records_of_a_stream_are_no_peak() -> None:
    """The first step is all of class 0, then ten classes share the stream equally: none has ended before its 200th."""
    running = bursts()
    running.observe({"0": 10})
    for _ in range(189):
        assert running.observe({str(label): 1 for label in range(10)}) == []
    assert running.observe({str(label): 1 for label in range(10)}) == ["0"]


def test_a_step_larger_than_the_window_counts_whole() -> None:
    running = bursts(records=10_000)
    for _ in range(5):
        assert running.observe({"a": 400, "b": 400}) == []
    assert running.observe({"b": 800}) == ["a"]


def test_a_step_without_records_is_none() -> None:
    running = bursts()
    assert running.observe({}) == []
    assert running.observe({"a": 0}) == []
    assert running.classes == []


Steps = list[dict[str, int]]
steps = st.lists(st.dictionaries(st.sampled_from(["a", "b/c", "d"]), st.integers(0, 90), max_size=3), max_size=30)


@PROPERTY
@given(before=steps, after=steps)
def test_a_restored_one_goes_on_bit_for_bit(before: Steps, after: Steps) -> None:
    running, restored = bursts(records=400), bursts(records=400)
    restored.observe({"gone": 30})
    for step in before:
        running.observe(step)
    restored.load_state(stored_and_loaded(running.state()))
    assert fingerprint(restored.state()) == fingerprint(running.state())
    for step in after:
        assert restored.observe(step) == running.observe(step)
    assert fingerprint(restored.state()) == fingerprint(running.state())
