"""The worker beside a learner: does what its state asks for, one job after the other, for as long as it runs."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

from consumers.base_snapshots import new_classes
from consumers.commit_log import BrokerUnavailable
from consumers.consolidation_job import KIND, JobReport, job_name
from consumers.record_source import LogTruncated, SourceUnavailable
from consumers.requested_jobs import RequestedJob, request_facts, requested_job
from consumers.topics import UnlabelledMissing
from deploy.consolidating import Chosen, SnapshotLost, consolidate
from deploy.exit_codes import one_line
from deploy.settings import Settings
from deploy.worker_console import WorkerConsole
from model_store.offers import OfferStore
from model_store.snapshot_store import SnapshotStore
from pipeline.restructuring.refused import Refused
from pipeline.state import Json
from pipeline.user_error import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkReport:
    """What one run of the worker did."""

    offered: int
    refused: int
    stopped_by: str  # "signal", "idle"


class RestructuringWorker:
    """Request in the newest manifest -> offer or refusal in the state's folder; it writes nothing else.

    1. Look for what the newest snapshot asks for and nobody has answered.
    2. Do the job. A kill leaves what was saved of it, and the next worker goes on from there; an answer that is there
       is not given again.
    3. Where no good student can come of it, say so: the learner waits for an answer before it asks again.
    4. Brokers that are away, a disk that takes nothing, a job by hand, an erasure: the same again, later.
    """

    def __init__(self, *, stream: str, state: Path, settings: Settings, console: WorkerConsole) -> None:
        self._stream = stream
        self._state = state
        self._settings = settings
        self._console = console
        self._snapshots = SnapshotStore(state / "snapshots")
        self._offers = OfferStore(state / "offers")
        self._cut: str | None = None  # the job whose log was cut while it was read

    def run(self, stop: threading.Event, until_idle_seconds: float | None = None) -> WorkReport:
        """Until `stop` is set, or nothing was asked for so long. Numbered as above.

        `UserError` where the folder is another stream's.
        """
        outcomes: list[bool] = []
        busy_at = time.monotonic()
        while not stop.is_set():
            # 1.
            job = self.next_job()
            if job is None:
                if until_idle_seconds is not None and time.monotonic() - busy_at >= until_idle_seconds:
                    return _report(outcomes, "idle")
                stop.wait(self._settings.worker.look_seconds)
                continue
            try:
                outcome = self._answer(job, stop)
                if outcome is not None:
                    outcomes.append(outcome)
            # 4.
            except (UserError, BrokerUnavailable, SourceUnavailable, OSError) as error:
                self._console.waits(job_name(job.parent), error, self._settings.worker.retry_seconds)
                stop.wait(self._settings.worker.retry_seconds)
            busy_at = time.monotonic()
        return _report(outcomes, "signal")

    def next_job(self) -> RequestedJob | None:
        """What is asked for and not answered. `UserError` where the folder is another stream's."""
        entries = self._snapshots.entries() if self._snapshots.folder.is_dir() else []
        if not entries:
            return None
        stream = entries[-1].facts.get("stream")
        if stream != self._stream:
            raise UserError(f"{self._state} holds the state of stream {stream!r}, not {self._stream!r}")
        job = requested_job(entries)
        if job is None:
            return None
        name = job_name(job.parent)
        return None if name in [answer.job for answer in self._offers.answers()] else job

    def _answer(self, job: RequestedJob, stop: threading.Event) -> bool | None:
        """True: offered; False: refused; None: `stop` ended it."""
        name = job_name(job.parent)
        self._console.requested(name, job.reason)
        # 2.
        try:
            report = self._do(job, stop)
        # 3.
        except (Refused, UnlabelledMissing, SnapshotLost, LogTruncated) as error:
            if isinstance(error, LogTruncated) and self._cut != name:
                # retention may cut the log while it is read; begun anew, the job takes the reservoir's samples
                self._cut = name
                raise SourceUnavailable(one_line(error)) from error
            names = [] if job.base is None else new_classes(job.parent, job.base)
            facts: dict[str, Json] = {
                **request_facts(job.parent),
                "new_classes": [*names],
                "base_is_lost": job.base is None,
            }
            self._offers.refuse(name, KIND, one_line(error), facts)
            self._console.refused(name, one_line(error))
            return False
        if report is None:
            return None
        self._console.answered(report)
        return report.judgement.accepted

    def _do(self, job: RequestedJob, stop: threading.Event) -> JobReport | None:
        if job.base is None:
            raise SnapshotLost(
                "the snapshot from before the new classes, the old teacher, is not kept any more: raise "
                "snapshots.keep_days, or start the worker sooner"
            )
        return consolidate(
            Chosen(parent=job.parent, base=job.base),
            stream=self._stream,
            state=self._state,
            settings=self._settings,
            unlabelled=None,
            progress=self._console.progress,
            stop=stop,
            is_awaited=True,
        )


def _report(outcomes: list[bool], stopped_by: str) -> WorkReport:
    return WorkReport(offered=sum(outcomes), refused=len(outcomes) - sum(outcomes), stopped_by=stopped_by)
