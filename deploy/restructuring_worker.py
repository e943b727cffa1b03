"""The worker beside a learner: does what its state asks for, one job after the other, for as long as it runs."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from consumers.base_snapshots import new_classes
from consumers.commit_log import BrokerUnavailable
from consumers.record_source import LogTruncated, SourceUnavailable
from consumers.requested_jobs import RequestedJob, request_facts, requested_job
from consumers.restructuring_job import SnapshotLost, job_name
from consumers.topics import UnlabelledMissing
from consumers.worker_observer import JobOutcome, WorkerObserver
from deploy.exit_codes import one_line
from deploy.job_tries import JobTries
from deploy.restructuring import COMMANDS, Chosen, restructure
from deploy.settings import Settings
from deploy.worker_console import WorkerConsole
from model_store.durable_files import remove_folder
from model_store.offers import OfferStore
from model_store.snapshot_store import SnapshotStore
from pipeline.restructuring.refused import Refused
from pipeline.state import Json
from pipeline.user_error import UserError

if TYPE_CHECKING:
    from deploy.automatic_promotion import AutomaticPromotion

# So many processes in a row may end in the midst of a job before it is refused: killed for their memory, or a bug.
_MOST_TRIES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkReport:
    """What one run of the worker did."""

    offered: int
    refused: int
    stopped_by: str  # "signal", "idle"


class RestructuringWorker:
    """Request in the newest manifest -> offer or refusal in the state's folder; of the stream it writes nothing, but
    for what it promotes.

    1. Look for what the newest snapshot asks for and nobody has answered.
    2. Do the job, of the kind that is asked for. A kill leaves what was saved of it, and the next worker goes on from
       there; an answer that is there is not given again.
    3. Where no good network can come of it, or no process survives it, say so: the learner waits for an answer before
       it asks again.
    4. Between the jobs, where `promotion.automatic` is set: a new challenger is judged, and promoted if it passes.
    5. Brokers that are away, a disk that takes nothing, a job by hand, an erasure: the same again, later.
    """

    def __init__(
        self,
        *,
        stream: str,
        state: Path,
        settings: Settings,
        console: WorkerConsole,
        observer: WorkerObserver | None = None,
    ) -> None:
        self._stream = stream
        self._state = state
        self._settings = settings
        self._console = console
        self._observer = observer or WorkerObserver()
        self._snapshots = SnapshotStore(state / "snapshots")
        self._offers = OfferStore(state / "offers")
        self._tries = JobTries(state / "jobs")
        self._lost: set[Path] = set()  # snapshots that are listed and cannot be loaded
        self._cut: str | None = None  # the job whose log was cut while it was read
        self._promotion: AutomaticPromotion | None = None
        if settings.promotion.automatic:
            from deploy.automatic_promotion import AutomaticPromotion  # MLflow comes with its first look
            from deploy.shadow import pair_scores

            self._promotion = AutomaticPromotion(
                stream=stream,
                state=state,
                settings=settings,
                console=console,
                observer=self._observer,
                shadow=pair_scores(settings, stream),
            )

    def run(self, stop: threading.Event, until_idle_seconds: float | None = None) -> WorkReport:
        """Until `stop` is set, or nothing was asked for so long. Numbered as above.

        `UserError` where the folder is another stream's.
        """
        outcomes: list[JobOutcome | None] = []
        busy_at = time.monotonic()
        while not stop.is_set():
            self._observer.turned()
            # 4.
            if self._promotion is not None:
                self._promotion.look(stop)
            # 1.
            try:
                job = self.next_job()
            except OSError as error:
                self._pause("the next job", error, stop)
                busy_at = time.monotonic()
                continue
            if job is None:
                if until_idle_seconds is not None and time.monotonic() - busy_at >= until_idle_seconds:
                    return _report(outcomes, "idle")
                stop.wait(self._settings.worker.look_seconds)
                continue
            name = job_name(job.kind, job.parent)
            self._console.requested(name, job.kind, job.reason)
            began = time.monotonic()
            self._observer.job_begun(job.kind, broken_off=self._tries.count(name))
            problem: Exception | None = None
            outcome: JobOutcome | None = None
            try:
                self._tries.begin(name)
                outcome = self._answer(job, stop)
                self._tries.end(name)
            except (UserError, BrokerUnavailable, SourceUnavailable, OSError) as error:
                with suppress(OSError):
                    self._tries.end(name)
                problem, outcome = error, None if stop.is_set() else "failed"
            finally:
                self._observer.job_ended(job.kind, outcome, time.monotonic() - began)
            outcomes.append(outcome)
            # 5.
            if problem is not None:
                self._pause(name, problem, stop)
            busy_at = time.monotonic()
        return _report(outcomes, "signal")

    def next_job(self) -> RequestedJob | None:
        """What is asked for and not answered. `UserError` where the folder is another stream's; `OSError`."""
        entries = self._snapshots.entries() if self._snapshots.folder.is_dir() else []
        stream = entries[-1].facts.get("stream") if entries else self._stream
        if stream != self._stream:
            raise UserError(f"{self._state} holds the state of stream {stream!r}, not {self._stream!r}")
        job = requested_job([entry for entry in entries if entry.path not in self._lost])
        if job is None or job_name(job.kind, job.parent) in [answer.job for answer in self._offers.answers()]:
            return None
        return job

    def _pause(self, what: str, error: Exception, stop: threading.Event) -> None:
        self._console.waits(what, error, self._settings.worker.retry_seconds)
        stop.wait(self._settings.worker.retry_seconds)

    def _progress(self, stage: str, done: int, total: int) -> None:
        self._observer.turned()
        self._console.progress(stage, done, total)

    def _answer(self, job: RequestedJob, stop: threading.Event) -> JobOutcome | None:
        """None: neither offered nor refused, and the next look finds it again, unless `stop` is set."""
        name = job_name(job.kind, job.parent)
        if job.base is None:
            return self._refuse(
                job,
                "the snapshot from before the new classes is not kept any more, or broken: raise snapshots.keep_days, "
                "or start the worker sooner",
            )
        if self._tries.count(name) > _MOST_TRIES:
            return self._refuse(
                job,
                f"{_MOST_TRIES} workers ended in the midst of it, killed or by a bug: look at their logs and at the "
                f"machine's memory, then run `{COMMANDS[job.kind]}`",
            )
        # 2.
        try:
            report = restructure(
                Chosen(kind=job.kind, parent=job.parent, base=job.base),
                stream=self._stream,
                state=self._state,
                settings=self._settings,
                unlabelled=None,
                progress=self._progress,
                stop=stop,
            )
        except SnapshotLost as error:
            self._lost.add(error.entry.path)  # another one of the same request, an older base
            return None
        except LogTruncated as error:
            if self._cut != name:
                # retention may cut the log while it is read; begun anew, the job takes the reservoir's samples
                self._cut = name
                return None
            return self._refuse(job, f"the log has lost what the job reads: {one_line(error).partition(';')[0]}")
        # 3.
        except (Refused, UnlabelledMissing) as error:
            return self._refuse(job, one_line(error))
        if report is None:
            return None
        self._console.answered(report)
        return "offered" if report.judgement.accepted else "refused"

    def _refuse(self, job: RequestedJob, why: str) -> JobOutcome:
        name, new = job_name(job.kind, job.parent), [] if job.base is None else new_classes(job.parent, job.base)
        facts: dict[str, Json] = {
            **request_facts(job.parent, job.kind),
            "new_classes": [*new],
            "base_is_lost": job.base is None,
        }
        self._offers.refuse(name, job.kind, why, facts)
        begun = self._state / "jobs" / name
        if begun.is_dir():
            remove_folder(begun)  # decided: what was saved of it is of no use to anybody
        self._console.refused(name, job.kind, why)
        return "refused"


def _report(outcomes: list[JobOutcome | None], stopped_by: str) -> WorkReport:
    return WorkReport(offered=outcomes.count("offered"), refused=outcomes.count("refused"), stopped_by=stopped_by)
