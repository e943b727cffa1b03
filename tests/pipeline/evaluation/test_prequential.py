from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.prequential import Prequential
from pipeline.settings import EvaluationSettings
from pipeline.state import fingerprint
from tests.pipeline.evaluation.stored import stored_and_loaded

PROPERTY = settings(max_examples=100)


def prequential(window: int = 500) -> Prequential:
    return Prequential(EvaluationSettings(prequential_window=window))


def test_accuracy_is_that_of_the_newest_records() -> None:
    assert prequential().accuracy is None
    running = prequential(window=4)
    running.record(["a", "a", "b"], [True, False, True], known_classes=2)
    assert running.accuracy == 2 / 3
    assert running.class_accuracies == {"a": (0.5, 2), "b": (1.0, 1)}
    running.record(["b", "b", "b"], [False, False, True], known_classes=2)  # both records of a leave
    assert running.accuracy == 0.5
    assert running.class_accuracies == {"b": (0.5, 4)}
    assert running.records == 4


def test_early_gain_is_accuracy_on_records_2_to_50_minus_chance_at_each_of_them() -> None:
    """29 of records 2 to 50 are right. Chance: 24 records at 1/2 (12), then 25 at 1/4 (6.25)."""
    running = prequential(window=3)
    right = [number <= 30 for number in range(1, 51)]
    running.record(["a"] * 25, right[:25], known_classes=2)
    running.record(["a"] * 24, right[25:49], known_classes=4)
    assert running.early_accuracy_gain("a") is None
    assert running.average_early_accuracy_gain is None
    running.record(["a"], right[49:], known_classes=4)
    assert running.early_accuracy_gain("a") == pytest.approx((29 - 18.25) / 49)
    running.record(["a"] * 10, [True] * 10, known_classes=1)  # too late to count
    assert running.early_accuracy_gain("a") == pytest.approx((29 - 18.25) / 49)


def test_the_first_record_does_not_count() -> None:
    running = prequential()
    running.record(["a"] * 50, [True] + [False] * 49, known_classes=10)
    assert running.early_accuracy_gain("a") == pytest.approx(-0.1)


def test_the_average_gain_is_over_finished_classes() -> None:
    running = prequential()
    running.record(["a"] * 50, [True] * 50, known_classes=1)
    running.record(["b"] * 50, [True] * 50, known_classes=2)
    running.record(["c"] * 49, [False] * 49, known_classes=3)
    assert running.early_accuracy_gain("a") == 0.0
    assert running.early_accuracy_gain("b") == 0.5
    assert running.early_accuracy_gain("c") is None
    assert running.early_accuracy_gain("never seen") is None
    assert running.average_early_accuracy_gain == 0.25


Batches = list[tuple[list[tuple[str, bool]], int]]
batches = st.lists(
    st.tuples(
        st.lists(st.tuples(st.sampled_from(["a", "b/c", "ä", ""]), st.booleans()), max_size=30), st.integers(1, 1000)
    ),
    max_size=15,
)


def feed(running: Prequential, stream: Batches) -> None:
    for records, known_classes in stream:
        running.record([label for label, _ in records], [right for _, right in records], known_classes)


@PROPERTY
@given(before=batches, after=batches, window=st.integers(1, 40))
def test_a_restored_one_goes_on_bit_for_bit(before: Batches, after: Batches, window: int) -> None:
    running, restored = prequential(window), prequential(window)
    restored.record(["gone"], [True], 1)  # what a restored one held before does not matter
    feed(running, before)
    restored.load_state(stored_and_loaded(running.state()))
    assert fingerprint(restored.state()) == fingerprint(running.state())
    feed(running, after)
    feed(restored, after)
    assert fingerprint(restored.state()) == fingerprint(running.state())
    assert restored.accuracy == running.accuracy
    assert restored.class_accuracies == running.class_accuracies
    assert restored.average_early_accuracy_gain == running.average_early_accuracy_gain


@PROPERTY
@given(stream=batches, window=st.integers(1, 40))
def test_window_counts_are_those_of_the_records_in_it(stream: Batches, window: int) -> None:
    running = prequential(window)
    feed(running, stream)
    newest = [record for records, _ in stream for record in records][-window:]
    assert running.accuracy == (sum(right for _, right in newest) / len(newest) if newest else None)
    for label in {label for label, _ in newest}:
        bits = [right for name, right in newest if name == label]
        assert running.class_accuracies[label] == (sum(bits) / len(bits), len(bits))
    assert sum(records for _, records in running.class_accuracies.values()) == len(newest)
