"""What a job has done so far, saved now and then, so that the same command goes on from there."""

from __future__ import annotations

import time
from collections.abc import Mapping

from consumers.job_kinds import PipelineJob
from model_store.fault_points import fault_point
from model_store.snapshot import Snapshot
from model_store.snapshot_store import SnapshotStore
from pipeline.record import Partition
from pipeline.restructuring.progress import Progress
from pipeline.state import Json

# What is lost at most where the process is killed.
_SAVED_EVERY_SECONDS = 30.0


class SavedJob:
    """Progress that is saved now and then, with the offsets up to which unlabelled records count."""

    def __init__(
        self,
        saved: SnapshotStore,
        making: PipelineJob,
        until: Mapping[Partition, int],
        facts: Mapping[str, Json],
        progress: Progress,
    ) -> None:
        self._saved, self._making, self._progress = saved, making, progress
        self._until, self._facts = until, facts
        self._at = time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        self._progress(stage, done, total)
        if time.monotonic() - self._at >= _SAVED_EVERY_SECONDS:
            self.save()
            self._at = time.monotonic()

    def save(self) -> None:
        entries = self._saved.entries() if self._saved.folder.is_dir() else []
        sequence = entries[-1].sequence + 1 if entries else 1
        self._saved.write(
            Snapshot(
                generation=0,
                sequence=sequence,
                state=self._making.state(),
                offsets=self._until,
                facts=self._facts,
            )
        )
        self._saved.prune(1)
        fault_point("job.saved")
