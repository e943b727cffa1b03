"""Brokers that have forgotten what a group committed (`offsets.retention.minutes`): nothing learnt is lost by it."""

from __future__ import annotations

from pathlib import Path

import pytest

from consumers.commit_log import Committed
from model_store import fault_points
from tests.consumers.digit_records import digit_stream
from tests.consumers.learner_world import Killed, World


@pytest.mark.parametrize("point", ["start.found", "start.loaded", "start.told", "start.sought"])
def test_a_start_after_them_is_killed_and_the_next_one_goes_on(tmp_path: Path, point: str) -> None:
    """Right after its claim, too: that commits sequence 0, and every snapshot stands above it."""
    world = World(tmp_path / "state")
    world.write(digit_stream(60))
    world.learn(max_records=60)
    learnt = world.newest().facts["records_consumed"]
    world.commits.committed.clear()

    def kill(reached: str) -> None:
        if reached == point:
            raise Killed

    fault_points.on_fault_point(kill)
    try:
        with pytest.raises(Killed):
            world.process().start()
    finally:
        fault_points.on_fault_point(None)
    process = world.process()
    assert process.start()
    assert process.learner.records_consumed == learnt


@pytest.mark.parametrize(
    ("generation", "sequence", "superseded"),
    [(1, 6, True), (1, 5, False), (2, 6, False), (3, 6, False), (1, 4, False)],
)
def test_what_a_replaced_writer_wrote_is_superseded(generation: int, sequence: int, superseded: bool) -> None:
    assert Committed(generation=2, sequence=5).supersedes(generation, sequence) is superseded
    assert not Committed(generation=2, sequence=0).supersedes(generation, sequence)
