"""A world in memory for learners to be born, killed and born again in: a log, what brokers keep, snapshots."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consumers import dead_letters, topics
from consumers.commit_log import CommitLog
from consumers.commit_thread import CommitAtOnce, Commits
from consumers.learner_process import LearnerProcess, RunReport
from consumers.manifest_facts import ProcessFacts
from consumers.memory_commit_log import InMemoryCommitLog, InMemoryCommits
from consumers.memory_record_source import InMemoryLog, InMemoryRecordSource
from consumers.observers import Observer
from consumers.process_settings import RegistrySettings, SnapshotSettings, StreamSettings
from consumers.record_source import RecordSource
from consumers.snapshot_commit import CommitReport
from consumers.told_before import Reports
from consumers.versions import Versions
from model_store.manifest import NotWhole
from model_store.offers import OfferStore
from model_store.snapshot import OutboxMessage, Snapshot
from model_store.snapshot_store import SnapshotEntry, SnapshotStore
from pipeline.evaluation.forgetting import EvaluationReport
from pipeline.record import Partition
from pipeline.settings import LearnerSettings
from pipeline.stream_learner import StepReport, StreamLearner
from tests.consumers.digit_records import Written

STREAM = "digits"
# Neither time nor idleness makes anything happen by itself in these tests, unless a test asks for it.
NEVER_SECONDS = 1e6


def learner_settings(**changes: Any) -> LearnerSettings:
    """The defaults (DER++ and EWC++ together) on a small reservoir."""
    return LearnerSettings.model_validate(
        {
            "threads": 1,
            "device": "cpu",
            "replay": {"capacity": 60, "draw_size": 24},
            "evaluation": {"every_records": 90, "min_class_samples": 2, "burst_records": 30, "prequential_window": 50},
        }
        | changes
    )


class Witness(Observer):
    """Remembers what it heard."""

    def __init__(self) -> None:
        self.steps: list[StepReport] = []
        self.evaluations: list[EvaluationReport] = []
        self.commits: list[CommitReport] = []
        self.failures: list[OSError] = []
        self.warnings: list[str] = []
        self.resumed: bool | None = None
        self.turns = 0

    def started(self, learner: StreamLearner, resumed: bool) -> None:
        self.resumed = resumed

    def stepped(self, learner: StreamLearner, report: StepReport) -> None:
        self.steps.append(report)

    def evaluated(self, learner: StreamLearner, report: EvaluationReport) -> None:
        self.evaluations.append(report)

    def committed(self, report: CommitReport) -> None:
        self.commits.append(report)

    def commit_failed(self, error: OSError) -> None:
        self.failures.append(error)

    def turned(self, lag_records: Mapping[Partition, int], away_seconds: float | None = None) -> None:
        self.turns += 1

    def warned(self, message: str) -> None:
        self.warnings.append(message)


@dataclass
class World:
    """What outlives every learner."""

    folder: Path
    settings: LearnerSettings = field(default_factory=learner_settings)
    log: InMemoryLog = field(default_factory=lambda: InMemoryLog(topics.samples(STREAM)))
    commits: InMemoryCommits = field(default_factory=InMemoryCommits)
    cluster_id: str = "cluster"
    topic_id: str = "topic"

    def write(self, records: Iterable[Written]) -> None:
        for record in records:
            self.log.append(record.value, key=record.key, headers=record.headers)

    @property
    def partition(self) -> Partition:
        return self.log.partitions[0]

    @property
    def store(self) -> SnapshotStore:
        return SnapshotStore(self.folder / "snapshots")

    @property
    def offers(self) -> OfferStore:
        return OfferStore(self.folder / "offers")

    def commit_log(self, branch: str = "main") -> InMemoryCommitLog:
        return InMemoryCommitLog(self.commits, STREAM, branch, dict.fromkeys(self.log.partitions, 0))

    def process(
        self,
        *,
        branch: str = "main",
        stream: str = STREAM,
        settings: LearnerSettings | None = None,
        source: RecordSource | None = None,
        commit_log: CommitLog | None = None,
        store: SnapshotStore | None = None,
        observer: Observer | None = None,
        versions: Versions | None = None,
        snapshots: Mapping[str, Any] | None = None,
        streaming: Mapping[str, Any] | None = None,
        registry: Mapping[str, Any] | None = None,
        accept_gap: bool = False,
        commits: Commits[Any] | None = None,
    ) -> LearnerProcess:
        """A learner that has not started yet."""
        return LearnerProcess(
            learner=StreamLearner(settings or self.settings),
            source=source or InMemoryRecordSource(self.log),
            commit_log=commit_log or self.commit_log(branch),
            store=store or self.store,
            facts=ProcessFacts(
                stream=stream,
                branch=branch,
                topic=self.log.topic,
                cluster_id=self.cluster_id,
                topic_id=self.topic_id,
                state_id="state",
            ),
            stream_settings=StreamSettings.model_validate(
                {"poll_seconds": 0.02, "idle_flush_seconds": NEVER_SECONDS} | dict(streaming or {})
            ),
            snapshot_settings=SnapshotSettings.model_validate(
                {"every_seconds": NEVER_SECONDS, "every_records": 45} | dict(snapshots or {})
            ),
            registry_settings=RegistrySettings.model_validate(dict(registry or {})),
            observer=observer or Observer(),
            versions=versions,
            reports=Reports(self.open_report, stream=stream, branch=branch) if branch == "main" else None,
            accept_gap=accept_gap,
            # Without a thread, so that a test knows when each commit is; the thread has tests of its own.
            commits=commits or CommitAtOnce(),
            offers=self.offers,
        )

    def learn(self, *, max_records: int | None = None, **parts: Any) -> RunReport:
        """Start a learner and let it learn to the end of the log, or so many records."""
        process = self.process(**parts)
        process.start()
        return run(process, max_records=max_records)

    def open_report(self, topic: str) -> InMemoryRecordSource:
        log = InMemoryLog(topic)
        for message in self.told(topic):
            log.append(message.value, key=message.key, headers=message.headers)
        return InMemoryRecordSource(log)

    def told(self, topic: str) -> list[OutboxMessage]:
        return [message for message in self.commits.messages if message.topic == topic]

    def dead_letters(self) -> list[OutboxMessage]:
        return self.told(topics.dead_letters(STREAM))

    def dead_offsets(self) -> list[int]:
        return [origin[2] for message in self.dead_letters() if (origin := dead_letters.origin(message.headers))]

    def events(self, kind: str) -> list[OutboxMessage]:
        return [message for message in self.told(topics.events(STREAM)) if message.key == kind.encode()]

    def newest(self) -> Snapshot:
        snapshot = self.store.newest_whole().snapshot
        assert snapshot is not None
        return snapshot

    def whole_entries(self) -> list[SnapshotEntry]:
        return [entry for entry in self.store.entries() if _is_whole(self.store, entry)]

    def newest_entry(self) -> SnapshotEntry:
        return self.store.entries()[-1]


def _is_whole(store: SnapshotStore, entry: SnapshotEntry) -> bool:
    try:
        store.load(entry)
    except NotWhole:
        return False
    return True


def run(process: LearnerProcess, *, max_records: int | None = None) -> RunReport:
    """To the end of the log, or so many records."""
    return process.run(stop=threading.Event(), until_idle_seconds=0.0, max_records=max_records)


class Killed(BaseException):
    """What kill -9 does, as far as one process can do it to itself: nothing after this line is run by the learner."""


class KilledAfterSteps(Observer):
    """The learner dies after so many steps."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    def stepped(self, learner: StreamLearner, report: StepReport) -> None:
        self._left -= 1
        if self._left <= 0:
            raise Killed


class _CommitLogAround(CommitLog):
    """Another commit log with something in between."""

    def __init__(self, inner: CommitLog) -> None:
        self.inner = inner

    @property
    def generation(self) -> int:
        return self.inner.generation

    def committed(self) -> Any:
        return self.inner.committed()

    def start(self, *, known_generation: int = 0, stop: threading.Event | None = None) -> Any:
        return self.inner.start(known_generation=known_generation, stop=stop)

    def commit(self, offsets: Mapping[Partition, int], sequence: int, outbox: Sequence[OutboxMessage]) -> None:
        self.inner.commit(offsets, sequence, outbox)

    def heartbeat(self) -> None:
        self.inner.heartbeat()

    def close(self) -> None:
        self.inner.close()


class KilledBeforeTelling(_CommitLogAround):
    """The learner dies between its nth snapshot and the transaction of it."""

    def __init__(self, inner: CommitLog, *, commits: int) -> None:
        super().__init__(inner)
        self._left = commits

    def commit(self, offsets: Mapping[Partition, int], sequence: int, outbox: Sequence[OutboxMessage]) -> None:
        self._left -= 1
        if self._left == 0:
            raise Killed
        self.inner.commit(offsets, sequence, outbox)


class KilledAfterTelling(_CommitLogAround):
    """The learner dies right after its nth transaction."""

    def __init__(self, inner: CommitLog, *, commits: int) -> None:
        super().__init__(inner)
        self._left = commits

    def commit(self, offsets: Mapping[Partition, int], sequence: int, outbox: Sequence[OutboxMessage]) -> None:
        self.inner.commit(offsets, sequence, outbox)
        self._left -= 1
        if self._left == 0:
            raise Killed


class CommitLogThatCalls(_CommitLogAround):
    """Does something before each commit goes through: raises, takes the branch over, counts."""

    def __init__(self, inner: CommitLog, before_commit: Callable[[], None]) -> None:
        super().__init__(inner)
        self._before_commit = before_commit

    def commit(self, offsets: Mapping[Partition, int], sequence: int, outbox: Sequence[OutboxMessage]) -> None:
        self._before_commit()
        self.inner.commit(offsets, sequence, outbox)


class FullDisk(SnapshotStore):
    """Takes no snapshot while it is full, and counts the tries."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.is_full = True
        self.tries = 0

    def write(self, snapshot: Snapshot) -> SnapshotEntry:
        self.tries += 1
        if self.is_full:
            raise OSError(28, "No space left on device")
        return super().write(snapshot)


class UnremovableSnapshots(SnapshotStore):
    """Snapshots are written, and none can be removed."""

    def prune(self, *args: Any, **kwargs: Any) -> list[Path]:
        raise PermissionError(13, "Permission denied")


class LostSource(InMemoryRecordSource):
    """Raises what it is told to, once it has handed over so many records."""

    def __init__(self, log: InMemoryLog, *, after_records: int, error: Exception) -> None:
        super().__init__(log)
        self._left = after_records
        self._error = error

    def poll(self, max_records: int, timeout_seconds: float) -> list[Any]:
        if self._left <= 0:
            raise self._error
        records = super().poll(min(max_records, self._left), timeout_seconds)
        self._left -= len(records)
        return list(records)
