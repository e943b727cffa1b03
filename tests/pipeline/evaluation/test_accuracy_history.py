from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation import accuracy_history as module
from pipeline.evaluation.accuracy_history import AccuracyHistory, HistoryPoint
from pipeline.state import fingerprint
from tests.pipeline.evaluation.stored import stored_and_loaded

PROPERTY = settings(max_examples=100)


def test_points_are_what_was_appended() -> None:
    history = AccuracyHistory()
    history.append(500, None, None, {"a/b": 0.5})
    history.append(1000, 0.625, 0.1, {"c": 0.25, "a/b": 1.0})
    history.append(1500, 0.75, 0.0, {"c": 0.75})
    assert history.points == [
        HistoryPoint(at_records=500, average_accuracy=None, average_forgetting=None, class_accuracies={"a/b": 0.5}),
        HistoryPoint(
            at_records=1000, average_accuracy=0.625, average_forgetting=0.1, class_accuracies={"a/b": 1.0, "c": 0.25}
        ),
        HistoryPoint(at_records=1500, average_accuracy=0.75, average_forgetting=0.0, class_accuracies={"c": 0.75}),
    ]


def test_a_long_history_keeps_its_span_at_even_distances_and_the_newest_point() -> None:
    history = AccuracyHistory()
    for number in range(2001):
        history.append(number, 0.5, 0.0, {"a": 0.5})
    assert [point.at_records for point in history.points] == list(range(0, 2001, 2))
    for number in range(2001, 4002):
        history.append(number, 0.5, 0.0, {"a": 0.5})
    # the 2,000th even one and the newest are one too many together: from then on every fourth
    assert [point.at_records for point in history.points] == [*range(0, 4002, 4), 4001]


def test_many_classes_make_it_shorter() -> None:
    history = AccuracyHistory()
    accuracies = {str(label): 0.5 for label in range(1000)}
    for number in range(501):
        history.append(number, 0.5, 0.0, accuracies)
    assert [point.at_records for point in history.points] == list(range(0, 501, 2))


Evaluations = list[dict[str, float]]
evaluations = st.lists(
    st.dictionaries(st.sampled_from(["a", "b/c", "d"]), st.floats(0, 1, width=32), max_size=3), max_size=40
)


@PROPERTY
@given(before=evaluations, after=evaluations)
def test_a_restored_history_goes_on_bit_for_bit(before: Evaluations, after: Evaluations) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_POINTS", 7)
        patch.setattr(module, "_POINTS_AT_LEAST", 3)
        history, restored = AccuracyHistory(), AccuracyHistory()
        for number, accuracies in enumerate(before):
            history.append(number, float(np.mean([*accuracies.values(), 0])), None, accuracies)
        restored.load_state(stored_and_loaded(history.state()))
        assert restored.points == history.points
        assert fingerprint(restored.state()) == fingerprint(history.state())
        for number, accuracies in enumerate(after, start=len(before)):
            for each in (history, restored):
                each.append(number, 0.1, 0.2, accuracies)
        assert restored.points == history.points
        assert fingerprint(restored.state()) == fingerprint(history.state())
        assert len(history.points) <= 7
        if before or after:
            assert history.points[-1].at_records == len(before) + len(after) - 1
