from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.evaluation import hold_out as module
from pipeline.evaluation.hold_out import HoldOut, evaluate_hold_out, without_key
from pipeline.sample import Sample
from pipeline.settings import HoldOutSettings
from pipeline.state import fingerprint
from tests.pipeline.evaluation.stored import stored_and_loaded

PROPERTY = settings(max_examples=100)

ALL = HoldOutSettings(share=1.0, per_class=200)

# Of ids and of subjects 0 to 99, those held out with the default share and salt.
GOLDEN_IDS = [0, 34, 36, 68, 87, 94, 98]
GOLDEN_SUBJECTS = [9, 22, 49, 59, 60, 69, 79, 91, 92]


def sample(id: int, label: str | None = "a", subject: str | None = None, pixel: int | None = None) -> Sample:
    x = np.full((1, 2, 2), id % 256 if pixel is None else pixel, dtype=np.uint8)
    return Sample(x=x, kind="image", label=label, source="test", id=str(id), subject=subject)


def hashes(hold_out: HoldOut) -> list[int]:
    tensor = hold_out.state()["hashes"]
    assert isinstance(tensor, Tensor)
    return [value % 2**64 for value in tensor.tolist()]


def test_the_choice_stays_what_it_was_in_every_release() -> None:
    """A state outlives releases: another choice would train on what was held out."""
    hold_out = HoldOut(HoldOutSettings(share=0.1, salt="palimpsest"))
    assert [id for id in range(100) if hold_out.chooses(sample(id))] == GOLDEN_IDS
    assert [n for n in range(100) if hold_out.chooses(sample(0, subject=f"person {n}"))] == GOLDEN_SUBJECTS


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_share_is_held_out(share: float) -> None:
    hold_out = HoldOut(HoldOutSettings(share=share))
    chosen = sum(hold_out.chooses(sample(id)) for id in range(10_000))
    assert abs(chosen - 10_000 * share) <= 4 * np.sqrt(10_000 * share * (1 - share))


def test_another_salt_chooses_others() -> None:
    one = HoldOut(HoldOutSettings(share=0.5, salt="one"))
    other = HoldOut(HoldOutSettings(share=0.5, salt="x" * 1000))
    both = sum(one.chooses(sample(id)) and other.chooses(sample(id)) for id in range(4_000))
    assert 870 < both < 1130  # a quarter, +- 4 standard errors: independent


def test_all_records_of_a_subject_go_together_whatever_their_label() -> None:
    hold_out = HoldOut(HoldOutSettings(share=0.3))
    for subject in map(str, range(50)):
        choices = {
            hold_out.chooses(sample(id, label=label, subject=subject)) for id in range(5) for label in ("a", None)
        }
        assert len(choices) == 1


def test_a_subject_is_not_taken_for_an_id() -> None:
    hold_out = HoldOut(HoldOutSettings(share=0.5))
    differs = [hold_out.chooses(sample(id)) != hold_out.chooses(sample(0, subject=f"test\0{id}")) for id in range(100)]
    assert any(differs)


def test_a_larger_share_holds_out_what_a_smaller_one_did() -> None:
    small, large = HoldOut(HoldOutSettings(share=0.1)), HoldOut(HoldOutSettings(share=0.2))
    assert all(large.chooses(sample(id)) for id in range(1_000) if small.chooses(sample(id)))


def test_each_class_keeps_the_smallest_hashes() -> None:
    everything, some = HoldOut(ALL), HoldOut(HoldOutSettings(share=1.0, per_class=7))
    for id in range(100):
        everything.add(sample(id, label="ab"[id % 2]))
        some.add(sample(id, label="ab"[id % 2]))
    assert some.classes == ["a", "b"]
    assert (some.count("a"), some.count("b"), some.count("c")) == (7, 7, 0)
    whole = hashes(everything)
    assert hashes(some) == [*sorted(whole[:50])[:7], *sorted(whole[50:])[:7]]
    assert np.array_equal(some.samples("a"), everything.samples("a")[:7])
    assert some.samples("b").dtype == np.uint8
    assert some.samples("b").shape == (7, 1, 2, 2)
    assert set(some.samples("b")[:, 0, 0, 0] % 2) == {1}


def test_adding_tells_whether_the_sample_is_kept_now() -> None:
    hold_out = HoldOut(HoldOutSettings(share=1.0, per_class=3))
    told = []
    for id in range(100):
        told.append(hold_out.add(sample(id)))
        assert told[-1] == (id in hold_out.samples("a")[:, 0, 0, 0])
    assert 3 < sum(told) < 100


def test_a_subject_counts_once_with_its_first_sample() -> None:
    hold_out = HoldOut(ALL)
    assert hold_out.add(sample(1, subject="cat 7", pixel=10))
    assert not hold_out.add(sample(2, subject="cat 7", pixel=20))
    assert hold_out.add(sample(3, subject="cat 7", pixel=30, label="b"))  # of another class it is a sample, too
    assert hold_out.add(sample(4, subject="cat 8", pixel=40))
    assert hold_out.count("a") == 2
    assert sorted(hold_out.samples("a")[:, 0, 0, 0].tolist()) == [10, 40]
    assert hold_out.samples("b")[:, 0, 0, 0].tolist() == [30]


def test_what_is_kept_is_a_copy() -> None:
    payloads = np.zeros((3, 1, 2, 2), dtype=np.uint8)
    hold_out = HoldOut(ALL)
    hold_out.add(Sample(x=payloads[0], kind="image", label="a", source="s", id="1"))
    payloads[:] = 9
    assert not hold_out.samples("a").any()
    state = hold_out.state()
    hold_out.load_state(state)
    assert isinstance(state["x"], Tensor)
    state["x"].fill_(9)
    assert not hold_out.samples("a").any()


samples_of_few_subjects = st.lists(
    st.builds(
        lambda id, label, subject: sample(id, label=label, subject=subject),
        id=st.integers(0, 10_000),
        label=st.sampled_from(["a", "b/c", "ü", ""]),
        subject=st.none() | st.integers(0, 30).map(str),
    ),
    max_size=60,
)


@PROPERTY
@given(samples=samples_of_few_subjects, data=st.data(), per_class=st.integers(1, 5))
def test_which_subjects_are_kept_does_not_depend_on_the_order(
    samples: list[Sample], data: st.DataObject, per_class: int
) -> None:
    one, other = (HoldOut(HoldOutSettings(share=1.0, per_class=per_class)) for _ in range(2))
    for entry in samples:
        one.add(entry)
    for entry in data.draw(st.permutations(samples)):
        other.add(entry)
    assert one.classes == other.classes
    assert hashes(one) == hashes(other)


@PROPERTY
@given(ids=st.sets(st.integers(0, 10_000), max_size=40), data=st.data())
def test_where_every_record_is_its_own_subject_the_whole_state_does_not_depend_on_the_order(
    ids: set[int], data: st.DataObject
) -> None:
    one, other = (HoldOut(HoldOutSettings(share=1.0, per_class=3)) for _ in range(2))
    for id in sorted(ids):
        one.add(sample(id, label=str(id % 4)))
    for id in data.draw(st.permutations(sorted(ids))):
        other.add(sample(id, label=str(id % 4)))
    assert fingerprint(one.state()) == fingerprint(other.state())


@PROPERTY
@given(samples=samples_of_few_subjects, later=samples_of_few_subjects)
def test_a_restored_hold_out_goes_on_as_if_nothing_had_happened(samples: list[Sample], later: list[Sample]) -> None:
    config = HoldOutSettings(share=0.7, per_class=4)
    hold_out, restored = HoldOut(config), HoldOut(config)
    for entry in filter(hold_out.chooses, samples):
        hold_out.add(entry)
    restored.load_state(stored_and_loaded(hold_out.state()))
    assert fingerprint(restored.state()) == fingerprint(hold_out.state())
    for entry in filter(hold_out.chooses, later):
        assert restored.add(entry) == hold_out.add(entry)
    assert fingerprint(restored.state()) == fingerprint(hold_out.state())
    assert restored.classes == hold_out.classes


@pytest.mark.parametrize("dtype", ["uint8", "float32", "int32"])
def test_the_state_keeps_the_dtype_of_the_input(dtype: str) -> None:
    hold_out, restored = HoldOut(ALL), HoldOut(ALL)
    x = np.arange(6).reshape(2, 3).astype(dtype)
    hold_out.add(Sample(x=x, kind="vector", label="a", source="s", id="1"))
    restored.load_state(stored_and_loaded(hold_out.state()))
    assert restored.samples("a").dtype == dtype
    assert np.array_equal(restored.samples("a"), x[None])


class FirstPixelIsTheColumn:
    """A network whose prediction stands in the picture."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, x: npt.NDArray[np.generic]) -> npt.NDArray[np.integer[Any]]:
        self.sizes.append(len(x))
        return np.asarray(x[:, 0, 0, 0], dtype=np.int64)


def three_classes() -> HoldOut:
    hold_out = HoldOut(ALL)
    for id, pixel in enumerate([1, 1, 0, 1]):  # column 1 is right in 3 of 4
        hold_out.add(sample(id, label="a", pixel=pixel))
    for id, pixel in enumerate([0, 2]):  # column 0 is right in 1 of 2
        hold_out.add(sample(10 + id, label="b", pixel=pixel))
    hold_out.add(sample(20, label="unknown", pixel=0))
    return hold_out


def test_accuracy_by_class_in_the_order_of_columns_and_unknown_classes_left_out() -> None:
    predict = FirstPixelIsTheColumn()
    accuracies = evaluate_hold_out(three_classes(), ["b", "a", "never held out"], predict)
    assert list(accuracies.items()) == [("b", (0.5, 2)), ("a", (0.75, 4))]
    assert predict.sizes == [6]


def test_large_hold_outs_are_predicted_class_by_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SAMPLES_PER_PREDICTION", 5)
    predict = FirstPixelIsTheColumn()
    accuracies = evaluate_hold_out(three_classes(), ["b", "a", "unknown"], predict)
    assert accuracies == {"b": (0.5, 2), "a": (0.75, 4), "unknown": (0.0, 1)}
    assert predict.sizes == [2, 5]


def test_nothing_known_or_held_out_is_no_prediction() -> None:
    predict = FirstPixelIsTheColumn()
    assert evaluate_hold_out(three_classes(), [], predict) == {}
    assert evaluate_hold_out(HoldOut(ALL), ["a"], predict) == {}
    assert predict.sizes == []


def test_a_key_is_the_hash_that_chooses_as_int64_holds_it() -> None:
    hold_out = HoldOut(ALL)
    samples = [sample(n, subject=f"person {n}" if n % 2 else None) for n in range(40)]
    for one in samples:
        hold_out.add(one)
    keys = [hold_out.key(one) for one in samples]
    stored = hold_out.state()["hashes"]
    assert isinstance(stored, Tensor)
    assert sorted(keys) == sorted(stored.tolist())
    assert any(key < 0 for key in keys)
    assert hold_out.subject_key("person 7") == keys[7] == hold_out.key(sample(0, subject="person 7"))
    assert hold_out.subject_key("test\0" + "8") != keys[8], "a subject is never an id"
    assert HoldOut(HoldOutSettings(share=1.0, salt="another")).subject_key("person 7") != keys[7]


def test_an_erased_key_leaves_every_class_and_nothing_else_does() -> None:
    hold_out, left = HoldOut(ALL), HoldOut(ALL)
    for n in range(12):
        hold_out.add(sample(n, "abc"[n % 3], subject=f"person {n % 4}"))
    hold_out.add(sample(20, "alone", subject="person 1"))
    before = fingerprint(hold_out.state())
    state, removed = without_key(hold_out.state(), hold_out.subject_key("person 1"))
    assert removed == 4
    assert fingerprint(hold_out.state()) == before
    left.load_state(stored_and_loaded(state))
    assert left.classes == ["a", "b", "c"], "a class whose last sample went is none any more"
    expected = HoldOut(ALL)
    for n in range(12):
        if n % 4 != 1:
            expected.add(sample(n, "abc"[n % 3], subject=f"person {n % 4}"))
    assert fingerprint(left.state()) == fingerprint(expected.state())
    again, removed = without_key(state, hold_out.subject_key("person 1"))
    assert (fingerprint(again), removed) == (fingerprint(state), 0)


def test_a_hold_out_of_which_all_was_erased_is_evaluated_as_an_empty_one() -> None:
    hold_out, left = HoldOut(ALL), HoldOut(ALL)
    hold_out.add(sample(1, "a", subject="one"))
    state, removed = without_key(hold_out.state(), hold_out.subject_key("one"))
    assert removed == 1
    assert "x" not in state
    left.load_state(stored_and_loaded(state))
    assert evaluate_hold_out(left, ["a"], lambda x: np.zeros(len(x), dtype=np.int64)) == {}
    assert without_key(HoldOut(ALL).state(), 5)[1] == 0


def test_a_state_is_as_it_was_whatever_comes_later() -> None:
    hold_out = HoldOut(ALL)
    hold_out.add(sample(1))
    state = hold_out.state()
    before = fingerprint(state)
    hold_out.add(sample(2))
    hold_out.add(sample(3, "b"))
    hold_out.samples("a")[:] = 0
    assert fingerprint(state) == before
