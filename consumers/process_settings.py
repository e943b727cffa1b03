"""Settings of the learner's process: when it snapshots, registers, flushes, and where it shows its metrics."""

from __future__ import annotations

from pathlib import Path

from pipeline.settings_section import Section, changeable


class SnapshotSettings(Section):
    """When state is made durable."""

    every_seconds: float = changeable(30.0, gt=0, why="seconds between two snapshots while records come")
    every_records: int | None = changeable(None, ge=1, why="a snapshot after so many records too (none: by time alone)")
    keep: int = changeable(3, ge=2, why="newest snapshots kept, beside those of versions in a role")
    keep_bases: int = changeable(
        3, ge=0, why="snapshots from right before new classes that are kept too: a consolidation's old teachers"
    )
    keep_days: float = changeable(30.0, gt=0, why="older ones go even if few are left, but never the two newest")
    max_outbox_messages: int = changeable(10_000, ge=1, why="a fuller outbox forces a snapshot")
    max_outbox_bytes: int = changeable(64 * 1024 * 1024, ge=1, why="a larger outbox forces a snapshot")


class StreamSettings(Section):
    """How the log is read."""

    poll_seconds: float = changeable(0.25, gt=0, why="how long one poll waits for records")
    idle_flush_seconds: float = changeable(
        2.0, gt=0, why="a partial batch is learnt after this long without a record, and the decision recorded"
    )
    decode_ahead_records: int = changeable(2_000, ge=1, why="decoded records that may wait for the learner")
    heartbeat_seconds: float = changeable(
        30.0, gt=0, le=50, why="offsets are re-committed this often, so that a fenced learner notices"
    )


class RegistrySettings(Section):
    """Versions in MLflow."""

    enabled: bool = changeable(True, why="false: no versions are registered")
    tracking_uri: str | None = changeable(
        None,
        why="any MLflow tracking URI; none: MLFLOW_TRACKING_URI, else a SQLite file in the folder above the state's",
    )
    every_records: int = changeable(5_000, ge=1, why="records consumed between two versions")
    drain_seconds: float = changeable(60.0, ge=0, why="how long a stopping learner waits for waiting registrations")
    drain_seconds_at_signal: float = changeable(
        10.0, ge=0, why="the same after SIGTERM: keep it below the supervisor's grace period (Kubernetes: 30 s)"
    )


class WorkerSettings(Section):
    """`palimpsest restructure`, which works beside the learner."""

    nice: int = changeable(10, ge=0, le=19, why="lowers the worker's priority: the learner goes first")
    look_seconds: float = changeable(2.0, gt=0, why="how often it looks for what the learner asks for")
    retry_seconds: float = changeable(30.0, gt=0, why="pause before a job is tried again: the brokers were away")
    metrics_host: str = changeable("127.0.0.1", why="address to listen on; 0.0.0.0 shows the page to the network")
    metrics_port: int | None = changeable(
        None, ge=0, le=65535, why="0 picks a free one; none: 9097, or a free one where something else has that"
    )
    stale_after_seconds: float = changeable(
        3600.0, gt=0, why="/livez answers 503 when neither the worker nor its job has made a step for so long"
    )


class MetricsSettings(Section):
    """The page of the learner that Prometheus scrapes."""

    enabled: bool = changeable(True, why="false: no HTTP server, nor the worker's")
    host: str = changeable("127.0.0.1", why="address to listen on; 0.0.0.0 shows the page to the network")
    port: int | None = changeable(
        None, ge=0, le=65535, why="0 picks a free one; none: 9095, or a free one where something else has that"
    )
    max_class_labels: int = changeable(50, ge=1, why="classes with a time series of their own: the worst ones")
    stale_after_seconds: float = changeable(
        300.0, gt=0, why="/livez answers 503 when the loop has not turned for so long; one update may take seconds"
    )


class PageSettings(Section):
    """The page for a person, at / of the learner's metrics."""

    baseline_state: Path | None = changeable(
        None, why="state folder of another learner of the same stream, such as one without retention, to show beside"
    )
    baseline_title: str = changeable("no retention", min_length=1, max_length=60, why="what that one is called there")
