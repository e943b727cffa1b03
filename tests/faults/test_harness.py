"""The harness finds what it is there to find: what is lost, what is learnt or told twice, another model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import confluent_kafka
import pytest

from consumers import dead_letters, topics
from tests.deploy.command_line import palimpsest
from tests.faults.fault_stream import mixed
from tests.faults.harness import Trial
from tests.faults.journal import fates


def lines(*entries: object) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def step(records: int, *trained: str) -> dict[str, object]:
    nothing: dict[str, object] = {"held_out": [], "repeats": [], "loss": {}, "events": []}
    return {"records_consumed": records, "trained": list(trained), "dead": [[0, records]], **nothing}


def test_only_what_a_snapshot_holds_counts(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("1", "2", "3"))
    first.write_text(
        lines(step(2, "a", "b"), {"snapshot": [1, 1], "records_consumed": 2}, step(4, "c", "d"))
        + '{"records_consumed": 6, "trained'  # a kill while it wrote
    )
    second.write_text(
        lines(
            {"resumed_from": [1, 1], "records_consumed": 2},
            step(3, "c"),
            {"snapshot": [2, 2], "records_consumed": 3},  # the disk refused it
            step(5, "d", "e"),
            {"snapshot": [2, 2], "records_consumed": 5},
            step(7, "f"),
            {"snapshot": [2, 3], "records_consumed": 7},  # lost, or never whole
        )
    )
    third.write_text(
        lines(
            {"resumed_from": [2, 2], "records_consumed": 5}, step(6, "f"), {"snapshot": [3, 4], "records_consumed": 6}
        )
    )
    found = fates([first, second, third], (3, 4))
    assert found.trained == ["a", "b", "c", "d", "e", "f"]
    assert found.dead == [(0, 2), (0, 3), (0, 5), (0, 6)]
    assert fates([first, second], (2, 3)).trained == ["a", "b", "c", "d", "e", "f"]
    with pytest.raises(AssertionError, match="nobody noted"):
        fates([first], (2, 2))


@pytest.mark.kafka
def test_it_sees_each_thing_that_may_go_wrong(make_trial: Callable[..., Trial]) -> None:
    trial = make_trial()
    log = trial.write(mixed(400, seed=91))
    trial.learn_to_the_end()
    verdict = trial.verdict()
    assert (verdict.passed, verdict.why) == (True, ())

    # A learner that was started as anybody starts it, and not forked, learns the same.
    done = palimpsest(
        *("learn", "--stream", trial.stream, "--state", trial.state("cold"), "--branch", "cold"),
        *("--settings", trial.settings_file(), "--until-idle", 0.3),
    )
    assert done.returncode == 0, done.stderr
    assert trial.fingerprint("cold") == trial.fingerprint()

    # 1. A journal that misses a record, and has another one twice.
    (journal,) = trial.folder.glob("main.*.journal")
    honest = journal.read_text()
    first, second = log.good[:2]
    held_out = trial.fates().held_out
    assert first not in held_out
    assert second not in held_out
    journal.write_text(honest.replace(f'"{first}"', f'"{second}"', 1))
    verdict = trial.verdict()
    assert (verdict.lost, verdict.doubled, verdict.differing) == (1, 1, 1), verdict.why
    # An update that went another way.
    journal.write_text(re.sub(r'("loss": {"incoming": )([0-9.]+)', r"\g<1>1\g<2>", honest, count=1))
    verdict = trial.verdict()
    assert (verdict.lost, verdict.doubled, verdict.differing) == (0, 0, 1), verdict.why
    # An event that was never told.
    journal.write_text(honest.replace('"events": []', '"events": ["drift/1"]', 1))
    verdict = trial.verdict()
    assert (verdict.lost, verdict.doubled, verdict.differing) == (1, 0, 1), verdict.why
    journal.write_text(honest)

    # 2. A dead letter that was sent twice.
    where, reason = next(iter(log.bad.items()))
    producer = confluent_kafka.Producer({"bootstrap.servers": trial.kafka.bootstrap_servers, "log_level": 3})
    facts = {
        dead_letters.TOPIC: topics.samples(trial.stream),
        dead_letters.PARTITION: str(where[0]),
        dead_letters.OFFSET: str(where[1]),
        dead_letters.REASON: reason,
    }
    producer.produce(topics.dead_letters(trial.stream), headers=list(facts.items()))
    assert producer.flush(30) == 0
    verdict = trial.verdict()
    assert (verdict.lost, verdict.doubled, verdict.differing) == (0, 1, 0), verdict.why

    # 3. One record more than the undisturbed learner has learnt.
    trial.write(mixed(40, seed=92))
    trial.learn_to_the_end()
    verdict = trial.verdict()
    # One dead letter of part 2 still, no two models, no two orders, no two courses.
    assert (verdict.lost, verdict.doubled, verdict.differing) == (0, 1, 3), verdict.why
