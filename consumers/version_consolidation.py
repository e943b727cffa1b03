"""A consolidation by hand: two registered versions and a topic of unlabelled records, to a new registered version.

There is no learner and no snapshot: versions carry a network, its classes and how payloads are read, but neither
records nor hold-outs. So there is no gate, no calibration, no replay, and nothing to judge the student on. Subjects
that were erased from a state are not known to its versions; their records in the topic are read like any other.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from consumers.record_source import ReadingStopped, RecordSource, read_records
from consumers.saved_job import SavedJob
from consumers.version_teacher import VersionTeacher
from model_store.durable_files import remove_folder
from model_store.registry import (
    NEW_VERSION_TAG,
    OLD_VERSION_TAG,
    RegisteredVersion,
    RegistrationRequest,
    Registry,
)
from model_store.snapshot_store import SnapshotStore
from pipeline.classifier import SERVABLE_FILE, Classifier
from pipeline.codec.record_decoder import RecordDecoder
from pipeline.device import choose_device
from pipeline.evaluation.hold_out import HoldOut
from pipeline.network import Network
from pipeline.record import Partition
from pipeline.restructuring.consolidation import Consolidation, Inputs
from pipeline.restructuring.consolidation_settings import ConsolidationSettings
from pipeline.restructuring.labelled_rows import gather_unlabelled
from pipeline.restructuring.progress import Progress
from pipeline.restructuring.refused import Refused
from pipeline.restructuring.trigger import Kind
from pipeline.sample import InputSpec
from pipeline.settings import HoldOutSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionReport:
    """What came of it."""

    version: RegisteredVersion
    class_names: tuple[str, ...]
    unlabelled_rows: int
    left_out: int  # records of the topic that these versions do not take
    seconds: float


class VersionConsolidation:
    """Begun again after a kill or a stop it goes on from what it saved, and comes to the same student; done again, it
    finds the version that it made. (On several partitions records may come in another order; then it is begun anew.)

    1. All unlabelled records that were there when the job first began, decoded as the versions do, without those that
       the hold-out of these settings chooses: a learner of the same settings judges the student on them one day.
    2. Both teachers, side by side; a class that both know takes the mean. The student is distilled.
    3. It is registered, under a name made of what it is, so that a kill before the end makes no second version.
    4. What was saved goes. Not before: an MLflow that is away meanwhile costs nothing.
    """

    def __init__(
        self,
        *,
        registry: Registry,
        register: str,
        unlabelled: RecordSource,
        work: Path,
        scratch: Path,
        consolidation: ConsolidationSettings,
        hold_out: HoldOutSettings,
        seed: int,
        device: str = "auto",
    ) -> None:
        """`register`: the name of the model that gets the version. `work`: a folder for what is begun; `scratch`: one
        that goes when the process ends. `consolidation`: as `for_ready_teachers` answers."""
        self._registry = registry
        self._register = register
        self._unlabelled = unlabelled
        self._work = work
        self._scratch = scratch
        self._consolidation = consolidation
        self._hold_out = hold_out
        self._seed = seed
        self._device = device

    def run(
        self, old: VersionTeacher, new: VersionTeacher, *, progress: Progress, stop: threading.Event
    ) -> VersionReport | None:
        """Numbered as above; None where `stop` ended it, with what was done so far saved.

        `Refused` where no good student could come of it; `SourceUnavailable`, `LogTruncated`, `OSError`; else as
        `Registry.register`.
        """
        began = time.monotonic()
        names = (*old.class_names, *(name for name in new.class_names if name not in old.class_names))
        # 1.
        saved = SnapshotStore(self._work / self._job_name(old, new))
        begun = saved.newest_whole().snapshot if saved.folder.is_dir() else None
        until = self._unlabelled.end_offsets() if begun is None else begun.offsets
        reader = _Reader(new, self._hold_out, stop)
        try:
            rows = gather_unlabelled(
                reader.rows(self._unlabelled, until), self._consolidation.most_unlabelled, self._seed
            )
        except ReadingStopped:
            return None
        self._check_rows(len(rows), reader.left_out, new)
        # 2.
        inputs = Inputs(
            class_names=names, columns=len(names), old=old.teacher(), specialist=new.teacher(), unlabelled=rows
        )
        consolidation = Consolidation(inputs, self._consolidation, device=choose_device(self._device), seed=self._seed)
        # what was saved under other settings is of no use: begun anew
        if begun is not None and begun.state["of"] == consolidation.state()["of"]:
            consolidation.load_state(begun.state)
        facts = {"old": str(old.uri), "new": str(new.uri)}
        saving = SavedJob(saved, consolidation, until, facts, progress)
        saving.save()
        student = consolidation.run(progress=saving, stop=stop.is_set)
        saving.save()
        if student is None:
            return None
        # 3.
        version = self._registry.register(self._request(old, new, student, names, until, len(rows)))
        # 4.
        remove_folder(saved.folder)
        return VersionReport(
            version=version,
            class_names=names,
            unlabelled_rows=len(rows),
            left_out=reader.left_out,
            seconds=time.monotonic() - began,
        )

    def _job_name(self, old: VersionTeacher, new: VersionTeacher) -> str:
        """Other versions, another topic or another model are another job. Short, however long their names are."""
        topic = self._unlabelled.partitions[0].topic
        what = hashlib.sha256(f"{old.uri} {new.uri} {topic} {self._register}".encode()).hexdigest()
        return f"{old.uri.name[:40]}-{old.uri.at}-{new.uri.name[:40]}-{new.uri.at}-{what[:8]}"

    def _check_rows(self, rows: int, left_out: int, new: VersionTeacher) -> None:
        """Too few is `Consolidation`'s own refusal; here it is said why, where what lies there is of another kind."""
        if left_out and rows < self._consolidation.min_unlabelled:
            spec = new.classifier.spec
            raise Refused(
                f"{left_out} records in {self._unlabelled.partitions[0].topic} are not {spec.kind} of shape "
                f"{spec.shape}, and {rows} rows are too few for a good student, at least "
                f"{self._consolidation.min_unlabelled} are wanted: name another topic with --unlabelled, send more, or "
                "lower min_unlabelled"
            )

    def _request(
        self,
        old: VersionTeacher,
        new: VersionTeacher,
        student: Network,
        names: tuple[str, ...],
        until: Mapping[Partition, int],
        rows: int,
    ) -> RegistrationRequest:
        servable = self._scratch / "student"
        Classifier(student.cpu(), names, new.classifier.spec, new.classifier.input_settings).save(servable)
        # There is no snapshot; this says as well what the version is. It holds the sum of the weights.
        what = hashlib.sha256((servable / SERVABLE_FILE).read_bytes()).hexdigest()
        return RegistrationRequest(
            stream=self._register,
            state_id=what[:32],  # no learner's: a run of its own, and nobody's parent
            snapshot_sha256=what,
            offsets=until,
            classes=names,
            trigger=Kind.CONSOLIDATION,
            servable=servable,
            records_trained=rows,
            tags={OLD_VERSION_TAG: str(old.uri), NEW_VERSION_TAG: str(new.uri)},
        )


class _Reader:
    """What lies in the topic, as these versions take it."""

    def __init__(self, new: VersionTeacher, hold_out: HoldOutSettings, stop: threading.Event) -> None:
        self.left_out = 0  # of what was read so far: broken, or of another kind
        self._decode = RecordDecoder(new.classifier.input_settings, labelled=False).decode
        self._spec: InputSpec = new.classifier.spec
        self._hold_out = HoldOut(hold_out)
        self._stop = stop

    def rows(self, source: RecordSource, until: Mapping[Partition, int]) -> Iterator[npt.NDArray[np.generic]]:
        """All that still lies there before these offsets."""
        begin = source.beginning_offsets()
        end = {partition: max(until.get(partition, 0), beginning) for partition, beginning in begin.items()}
        for record in read_records(source, begin, end, self._stop):
            sample = self._decode(record).sample
            if sample is None or sample.spec != self._spec:
                self.left_out += 1
            elif not self._hold_out.chooses(sample):
                yield sample.x
