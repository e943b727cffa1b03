from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.record import Partition
from pipeline.user_error import UserError
from producers.dataset_source import DatasetOptions
from producers.datasets import open_dataset
from producers.sample_stream import SampleStream
from producers.schedules import open_schedule
from tests.producers.made_datasets import TellingDataset

SPLIT = open_schedule("split")
# Of the labels 0 and 1, 8 bytes each, the low one first.
LABELS_SHA256 = hashlib.sha256(bytes(8) + b"\1" + bytes(7)).hexdigest()


def test_every_item_once_unchanged_and_labelled() -> None:
    stream = SampleStream(TellingDataset({"a": 3, "b": 2, "c": 4}), SPLIT)
    records = list(stream)
    assert sorted(record.event.data.decode() for record in records) == [str(i) for i in range(9)]
    assert [record.number for record in records] == list(range(9))
    labels = {str(i): "aaabbcccc"[i] for i in range(9)}
    for record in records:
        event = record.event
        assert record.labelled
        assert event.label == labels[event.data.decode()]
        assert event.subject == f"telling/{event.data.decode()}"
        assert event.task == ("1" if event.label == "c" else "0")
        assert event.content_type == "text/plain"
        assert event.type == "io.palimpsest.sample"
        assert re.fullmatch(r"palimpsest/produce/telling/split/[0-9a-f]{8}", event.source)
        assert event.time_seconds is None


def test_the_ids_are_the_data_sets_name_the_seed_and_the_number() -> None:
    stream = SampleStream(TellingDataset({"a": 2, "b": 1}), SPLIT, seed=7)
    assert [record.event.id for record in stream] == ["telling-7-0", "telling-7-1", "telling-7-2"]


def source_of(sizes: dict[str, int] | None = None, schedule: str = "split", **arguments: Any) -> str:
    options = {name: arguments.pop(name) for name in ("blur", "rounds", "imbalance") if name in arguments}
    dataset = TellingDataset(sizes or {"a": 6, "b": 4, "c": 4})
    return SampleStream(dataset, open_schedule(schedule, **options), **arguments).record(0).event.source


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"records": 20}),
        ({"records": 20}, {"records": 21}),
        ({}, {"classes_per_step": 1}),
        ({}, {"shuffle_classes": True}),
        ({}, {"unlabelled_share": 0.1}),
        ({"schedule": "blurred"}, {"schedule": "blurred", "blur": 0.1}),
        ({"schedule": "recurring"}, {"schedule": "recurring", "rounds": 2}),
        ({"schedule": "long-tail"}, {"schedule": "long-tail", "imbalance": 10.0}),
        ({}, {"sizes": {"a": 6, "b": 4, "c": 5}}),
        ({}, {"sizes": {"a": 6, "b": 4, "d": 4}}),
    ],
)
def test_other_arguments_are_another_source_and_the_same_are_the_same(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    """Ids number the records, so without it a learner would drop other content as repeats."""
    assert source_of(**one) == source_of(**one)
    assert source_of(**one) != source_of(**other)


def test_the_source_of_one_stream_stays_what_it_was() -> None:
    """Repeats are told across releases too: a change here makes learners learn what they know again."""
    plan = (
        '{"classes": ["a", "b"], "classes_per_step": 2, "labels": "' + LABELS_SHA256 + '", "opened_as": "",'
        ' "records": null, "schedule": {}, "shuffle_classes": false, "steps": null, "unlabelled_share": 0.0}'
    )
    expected = hashlib.sha256(plan.encode()).hexdigest()[:8]
    assert source_of({"a": 1, "b": 1}) == f"palimpsest/produce/telling/split/{expected}"


def test_what_a_data_set_is_opened_with_is_part_of_the_source_and_where_it_lies_is_not(tmp_path: Path) -> None:
    def source(folder: str, **options: Any) -> str:
        file = tmp_path / folder / "news.csv"
        file.parent.mkdir(exist_ok=True)
        file.write_text("text,title,label\none,eins,a\ntwo,zwei,b\n")
        dataset = open_dataset(f"csv:{file}", DatasetOptions(**options))
        return SampleStream(dataset, SPLIT).record(0).event.source

    assert source("here") == source("there") == source("here", data_root=tmp_path)
    assert len({source("here"), source("here", text_column="title"), source("here", split="test")}) == 3


def test_a_small_data_set_comes_again_changed_under_its_own_subject() -> None:
    stream = SampleStream(TellingDataset({"a": 3, "b": 2}), SPLIT, records=20)  # 12 and 8: four times each
    records = list(stream)
    assert len({record.event.id for record in records}) == 20
    seen: Counter[str] = Counter()
    for record in records:
        item = record.event.data.decode().split()[0]
        assert record.event.subject == f"telling/{item}"
        assert (b"changed" in record.event.data) == (seen[item] > 0)
        seen[item] += 1
    assert seen == {"0": 4, "1": 4, "2": 4, "3": 4, "4": 4}
    changed = [record.event.data for record in records if b"changed" in record.event.data]
    assert len(set(changed)) == len(changed)  # each draw has a change of its own


def test_an_item_comes_again_only_after_all_others_of_its_class() -> None:
    stream = SampleStream(TellingDataset({"a": 5}), SPLIT, records=15)
    items = [record.event.data.decode().split()[0] for record in stream]
    rounds = [items[start : start + 5] for start in (0, 5, 10)]
    assert all(sorted(of_round) == list("01234") for of_round in rounds)
    assert len({tuple(of_round) for of_round in rounds}) > 1


def test_the_same_stream_for_the_same_seed_only() -> None:
    dataset = TellingDataset({"a": 30, "b": 30})
    streams = [
        [(record.event, record.labelled) for record in SampleStream(dataset, SPLIT, seed=seed, records=100,
                                                                   unlabelled_share=0.2)]
        for seed in (1, 1, 2)
    ]  # fmt: skip
    assert streams[0] == streams[1]
    assert [event.data for event, _ in streams[0]] != [event.data for event, _ in streams[2]]
    assert [labelled for _, labelled in streams[0]] != [labelled for _, labelled in streams[2]]


def test_a_stream_can_be_iterated_again() -> None:
    stream = SampleStream(TellingDataset({"a": 4}), SPLIT, records=9)
    assert list(stream) == list(stream)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.15, 15), (0.5, 50), (1.0, 100)])
def test_the_unlabelled_share_is_exact_and_keeps_the_subject(share: float, expected: int) -> None:
    stream = SampleStream(TellingDataset({"a": 60, "b": 40}), SPLIT, unlabelled_share=share)
    without = [record for record in stream if not record.labelled]
    assert len(without) == expected == len(stream) - stream.labelled_count
    assert all(record.event.label is None and record.event.subject for record in without)
    assert all(record.event.label is not None for record in stream if record.labelled)


def test_which_records_are_unlabelled_changes_nothing_else() -> None:
    dataset = TellingDataset({"a": 60, "b": 40})
    plain, shared = (SampleStream(dataset, SPLIT, records=150, unlabelled_share=share) for share in (0.0, 0.3))
    assert [record.event.data for record in plain] == [record.event.data for record in shared]


def test_drifting_turns_the_payloads_and_changed_ones_too() -> None:
    dataset = TellingDataset({"a": 3, "b": 3, "c": 3})
    stream = SampleStream(dataset, open_schedule("drifting", rounds=1), records=18)
    of_b = [record.event.data.decode() for record in stream if record.event.label == "b"]
    # Class b stands in place 1, so it starts at 0 degrees, and turns by 60 for each of its six draws.
    assert ["turned" in payload for payload in of_b] == [False] + [True] * 5
    assert [payload.split()[-1] for payload in of_b[1:]] == ["60.0", "120.0", "180.0", "240.0", "300.0"]
    assert ["changed" in payload for payload in of_b] == [False] * 3 + [True] * 3


def test_what_cannot_turn_is_refused_for_drifting() -> None:
    dataset = TellingDataset({"a": 3, "b": 3})
    dataset.can_turn = False
    with pytest.raises(UserError, match="turns images, and telling holds none"):
        SampleStream(dataset, open_schedule("drifting"))


def test_the_log_holds_the_labelled_records_with_offsets() -> None:
    stream = SampleStream(TellingDataset({"a": 6, "b": 4}), SPLIT, unlabelled_share=0.3)
    log = list(stream.log("s.samples"))
    assert [record.offset for record in log] == list(range(7))
    assert {record.log_partition for record in log} == {Partition("s.samples", 0)}
    assert [record.value for record in log] == [record.event.data for record in stream if record.labelled]
    assert log[0].header("ce_label") == b"a"
    assert log[0].header("ce_time") is None


def test_a_data_sets_own_steps_become_tasks() -> None:
    dataset = TellingDataset({"a": 2, "b": 2})
    dataset.steps = 1 - dataset.labels  # b first
    assert [(record.event.task, record.event.label) for record in SampleStream(dataset, SPLIT)] == [
        ("0", "b"), ("0", "b"), ("1", "a"), ("1", "a")
    ]  # fmt: skip


def test_digits_end_to_end_for_every_class() -> None:
    stream = SampleStream(open_dataset("digits"), open_schedule("blurred"), unlabelled_share=0.15)
    assert len(stream) == 1_797
    assert len(stream) - stream.labelled_count == 270  # 269.55
    assert {record.event.label for record in stream if record.labelled} == set("0123456789")


@pytest.mark.parametrize("records", [0, -1])
def test_no_records_are_refused(records: int) -> None:
    with pytest.raises(UserError, match="--records"):
        SampleStream(TellingDataset({"a": 1}), SPLIT, records=records)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_outside_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(UserError, match="--unlabelled-share"):
        SampleStream(TellingDataset({"a": 1}), SPLIT, unlabelled_share=share)
