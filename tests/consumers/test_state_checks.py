"""Whether a state belongs to this stream, this log and these settings. (How a start asks: test_learner_process.py.)"""

from __future__ import annotations

from typing import Any

import pytest

from consumers.memory_record_source import InMemoryLog, InMemoryRecordSource
from consumers.record_source import record_checksum
from consumers.state_checks import check_belongs, check_last_records, check_log, check_settings
from pipeline.settings import LearnerSettings
from pipeline.settings_section import fixed_values
from pipeline.state import Json
from pipeline.user_error import UserError


def two_partitions(records: int = 5) -> InMemoryLog:
    log = InMemoryLog("s.samples", partitions=2)
    for partition in (0, 1):
        for number in range(records):
            log.append(b"%d/%d" % (partition, number), partition=partition)
    return log


def last_records(log: InMemoryLog, **offsets: int) -> dict[str, Json]:
    """The facts of a state that has consumed up to and with these offsets: p0=3, p1=..."""
    found: list[Json] = []
    for name, offset in offsets.items():
        partition = log.partitions[int(name[1:])]
        record = log.at(partition, offset)
        assert record is not None
        found.append([partition.topic, partition.number, offset, record_checksum(record)])
    return {"last_records": found}


def check(log: InMemoryLog, facts: dict[str, Json], *offsets: int) -> None:
    check_last_records(facts, InMemoryRecordSource(log), dict(zip(log.partitions, offsets, strict=False)))


def test_an_unchanged_log_is_gone_on_with() -> None:
    log = two_partitions()
    check(log, last_records(log, p0=3, p1=4), 4, 5)
    check(log, last_records(log, p0=3), 4)  # the second partition came since
    check(log, last_records(log), 0, 0)


def test_offsets_past_markers_are_fine_and_a_lost_tail_of_them_is_not() -> None:
    log = two_partitions()
    facts = last_records(log, p0=4)
    log.append_marker()
    check(log, facts, 6, 0)
    with pytest.raises(
        UserError, match=r"s.samples-0 ends at offset 6, before this state's offset 7: the log lost its"
    ):
        check(log, facts, 7, 0)
    with pytest.raises(UserError, match=r"s.samples-1 ends at offset 5, before this state's offset 6"):
        check(log, facts, 5, 6)  # nothing of this partition was ever learnt, only passed


def test_a_rewritten_record_is_found_in_whichever_partition() -> None:
    log, other = two_partitions(), two_partitions()
    facts = last_records(log, p0=3, p1=2)
    other._records[other.partitions[1]][2] = log.append(b"another", partition=1)
    with pytest.raises(UserError, match=r"the record at s.samples-1 offset 2 is not the one this state has learnt"):
        check(other, facts, 4, 3)


def test_what_retention_deleted_after_it_was_learnt_is_no_loss() -> None:
    log = two_partitions()
    facts = last_records(log, p0=3, p1=3)
    log.truncate_before(0, 4)
    check(log, facts, 4, 4)
    log.truncate_before(0, 5)
    with pytest.raises(UserError, match=r"s.samples-0 begins at offset 5, but this state needs it from 4"):
        check(log, facts, 4, 4)


@pytest.mark.parametrize("name", ["stream", "branch"])
def test_a_state_of_another_stream_or_branch_is_named(name: str) -> None:
    facts: dict[str, Json] = {"stream": "a", "branch": "main"}
    check_belongs(facts, stream="a", branch="main", folder="runs/a")
    with pytest.raises(UserError, match=rf"runs/a holds the state of {name} '.*', not 'b'; give another --state"):
        check_belongs(facts, folder="runs/a", **({"stream": "a", "branch": "main"} | {name: "b"}))


def test_a_log_of_another_cluster_or_made_anew_is_named() -> None:
    facts: dict[str, Json] = {"cluster_id": "c", "topic_id": "t"}
    check_log(facts, cluster_id="c", topic_id="t", topic="s.samples")
    with pytest.raises(UserError, match="learnt on Kafka cluster c, the brokers belong to d"):
        check_log(facts, cluster_id="d", topic_id="t", topic="s.samples")
    with pytest.raises(UserError, match=r"topic s.samples was made anew since .* \(topic id u, the state's t\)"):
        check_log(facts, cluster_id="c", topic_id="u", topic="s.samples")


def test_settings_that_only_one_release_knows_are_not_compared() -> None:
    ours: dict[str, Any] = fixed_values(LearnerSettings())
    older: dict[str, Any] = {path: value for path, value in ours.items() if path != "drift.delta"}
    check_settings({"fixed_settings": older}, ours)
    check_settings({"fixed_settings": ours | {"from.the.future": 1}}, ours)
    check_settings({}, ours)
    with pytest.raises(UserError, match=r"setting learner.drift.delta is 0.002, but this state was made with 0.5"):
        check_settings({"fixed_settings": ours | {"drift.delta": 0.5}}, ours)
