"""The dashboard *Pipeline*: whether records come in, are learnt in time, and are kept."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.board import AnyPanel, Section, board
from deploy.grafana.colours import better_from, worse_from
from deploy.grafana.panels import FREE, SHARE, figure, lines
from deploy.grafana.queries import Query
from deploy.grafana.series import added, age, here, quantile, rate
from deploy.grafana.units import BYTES, COUNT, PLAIN, RATIO, RECORDS_PER_SECOND, SECONDS

# Of what was read lately. Records that come again (duplicates) are read as well.
_DEAD_SHARE = f"sum({rate('palimpsest_dead_letters_total')}) / (sum({rate('palimpsest_samples_consumed_total')}) > 0)"


def pipeline() -> Dashboard:
    """Of learner, worker and predictors of one stream; what only one of them has says so."""
    return board(
        uid="palimpsest-pipeline",
        title="Palimpsest / Pipeline",
        description="Whether records come in, are learnt in time, and are kept.",
        since="now-3h",
        sections=[
            Section("Now", _now()),
            Section("Records", _records()),
            Section("Updates", _updates()),
            Section("Snapshots and versions", _snapshots()),
            Section("The worker's jobs", _jobs()),
            Section("Processes", _processes()),
        ],
    )


def _now() -> list[AnyPanel]:
    return [
        figure(
            "Records a second",
            "Read from the log by the learner, over the last moments. 0 while the stream is silent: look at the lag.",
            RECORDS_PER_SECOND,
            Query(f"sum({rate('palimpsest_samples_consumed_total')})"),
        ),
        figure(
            "Lag",
            "Records in the log that the learner has not read yet, of all partitions. It is well where it falls or "
            "stays; where it grows, records come faster than they are learnt, or learning stands still.",
            COUNT,
            Query(f"sum({here('palimpsest_consumer_lag_records')})"),
            colours=worse_from(10_000, 100_000),
        ),
        figure(
            "Event lag",
            "Age of the newest record learnt, by its ce_time. It grows while none come. Producers that send no "
            "ce_time leave it empty.",
            SECONDS,
            Query(f"max({here('palimpsest_event_lag_seconds')} >= 0)"),
            decimals=0,
        ),
        figure(
            "Age of the snapshot",
            "Since the newest one was written and told. What came after it is learnt once more after a crash. While "
            "nothing new is learnt, none is written: so it has no colour, and an alert looks at both.",
            SECONDS,
            Query(f"min({age('palimpsest_snapshot_last_success_timestamp_seconds')})"),
            decimals=0,
        ),
        figure(
            "Share of dead letters",
            "Of the records read lately: those that could not be learnt from, and lie in <stream>.dead-letters.",
            RATIO,
            Query(_DEAD_SHARE),
            colours=worse_from(0.01, 0.1),
            between=SHARE,
        ),
        figure(
            "Registrations waiting",
            "Versions in the learner's queue that MLflow does not have yet. More than a few: MLflow is away.",
            COUNT,
            Query(f"max({here('palimpsest_registrations_waiting')})"),
            colours=worse_from(2, 10),
        ),
        figure(
            "Jobs running",
            "Restructurings that the worker is at: one at a time.",
            COUNT,
            Query(f"sum({here('palimpsest_job_running')})"),
        ),
        figure(
            "Processes up",
            "Share of the chosen processes that answered Prometheus's last question.",
            RATIO,
            Query(f"avg({here('up')})"),
            colours=better_from(0.5, 1),
            decimals=0,
            between=SHARE,
        ),
    ]


def _records() -> list[AnyPanel]:
    return [
        lines(
            "Records a second",
            "read: from the log. trained: rows of updates, once each. replayed: rows drawn from the reservoir beside "
            "them. held out: kept for evaluations. repeats: dropped. erased: of subjects that are to be forgotten.",
            RECORDS_PER_SECOND,
            Query(f"sum({rate('palimpsest_samples_consumed_total')})", "read"),
            Query(f"""sum({rate("palimpsest_samples_trained_total", 'source="incoming"')})""", "trained"),
            Query(f"""sum({rate("palimpsest_samples_trained_total", 'source="replay"')})""", "replayed"),
            Query(f"sum({rate('palimpsest_samples_held_out_total')})", "held out"),
            Query(f"sum({rate('palimpsest_duplicates_total')})", "repeats"),
            Query(f"sum({rate('palimpsest_samples_erased_total')})", "erased"),
        ),
        lines(
            "Records behind",
            "Of each partition of the samples (the learner) and of the requests (predictors): what is in the log and "
            "was not read yet.",
            COUNT,
            Query(f"sum by (topic, partition) ({here('palimpsest_consumer_lag_records')})", "{{topic}} {{partition}}"),
            Query(f"sum by (topic, partition) ({here('palimpsest_request_lag_records')})", "{{topic}} {{partition}}"),
        ),
        lines(
            "Event lag",
            "Age of the newest record learnt, by its ce_time: how old what the model knows is. A line that rises by "
            "a second a second: nothing is learnt at all.",
            SECONDS,
            Query(f"max({here('palimpsest_event_lag_seconds')} >= 0)", "event lag"),
        ),
        lines(
            "Dead letters a second, by reason",
            "Records that cannot be learnt from. `palimpsest dead-letters list` shows them, with the reason of each.",
            RECORDS_PER_SECOND,
            Query(f"sum by (reason) ({rate('palimpsest_dead_letters_total')}) > 0", "{{reason}}"),
            stacked=True,
        ),
        lines(
            "Share of dead letters",
            "Of the records read. A jump to a high share: a producer writes something else than before.",
            RATIO,
            Query(_DEAD_SHARE, "share"),
            between=SHARE,
            colours=worse_from(0.01, 0.1),
        ),
        lines(
            "Breaks of the log that were borne",
            "Records that were gone before they were learnt, and that somebody let go with --accept-gap.",
            COUNT,
            Query(
                f"sum by (topic, partition) ({here('palimpsest_accepted_gap_records_total')})",
                "{{topic}} {{partition}}",
            ),
            steps=True,
        ),
    ]


def _updates() -> list[AnyPanel]:
    return [
        lines(
            "Time of a step, by stage",
            "Median and 99th percentile of each stage of a step. Where p99 is far above the median, some steps wait: "
            "for a snapshot's copy, an evaluation, the disk, or another process on the machine. The scale is "
            "logarithmic.",
            SECONDS,
            Query(quantile(0.5, "palimpsest_step_duration_seconds", "stage"), "{{stage}} p50"),
            Query(quantile(0.99, "palimpsest_step_duration_seconds", "stage"), "{{stage}} p99"),
            between=FREE,
            logarithmic=True,
            height=10,
        ),
        lines(
            "Share of the time, by stage",
            "Where the learner's time goes. Together well below 100 %: it waits for records. Near 100 % while the "
            "lag grows: it is as fast as it can be.",
            RATIO,
            Query(f"sum by (stage) ({rate('palimpsest_step_duration_seconds_sum')})", "{{stage}}"),
            stacked=True,
            height=10,
        ),
        lines(
            "Loss, by term",
            "Of the newest update: of what came in, and of each retention term. A term that grows without end comes "
            "before weights that diverge.",
            PLAIN,
            Query(f"max by (term) ({here('palimpsest_loss')} > -Inf)", "{{term}}"),
            between=FREE,
            width=24,
        ),
    ]


def _snapshots() -> list[AnyPanel]:
    return [
        lines(
            "Age of the snapshot",
            "A saw-tooth of the setting snapshots.every_seconds is well. A line that only rises while records come: "
            "snapshots fail.",
            SECONDS,
            Query(f"min({age('palimpsest_snapshot_last_success_timestamp_seconds')})", "age"),
            width=8,
        ),
        lines(
            "Time to write and commit a snapshot",
            "Beside the learning, in a thread of its own. Only one is under way at a time.",
            SECONDS,
            Query(quantile(0.5, "palimpsest_snapshot_duration_seconds"), "p50"),
            Query(quantile(0.99, "palimpsest_snapshot_duration_seconds"), "p99"),
            width=8,
        ),
        lines(
            "Time that learning stood still for a copy",
            "The state is copied between two updates, before it is written. It grows with network, reservoir and "
            "hold-outs.",
            SECONDS,
            Query(quantile(0.5, "palimpsest_snapshot_copy_duration_seconds"), "p50"),
            Query(quantile(0.99, "palimpsest_snapshot_copy_duration_seconds"), "p99"),
            width=8,
        ),
        lines(
            "Snapshots that could not be written",
            "Each is one that failed; learning goes on, and the next is tried. Look at the disk.",
            COUNT,
            Query(f"sum({added('palimpsest_snapshot_failures_total')})", "failed"),
            bars=True,
        ),
        lines(
            "Registrations waiting",
            "Versions that wait for MLflow in the learner's queue on disk. It falls to 0 once MLflow is back.",
            COUNT,
            Query(f"max({here('palimpsest_registrations_waiting')})", "waiting"),
            steps=True,
        ),
    ]


def _jobs() -> list[AnyPanel]:
    return [
        lines(
            "Jobs, by what came of them",
            "offered: the learner decides. refused: the worker found that it cannot be done well. failed: it broke "
            "off, and is tried again.",
            COUNT,
            Query(f"sum by (kind, outcome) ({added('palimpsest_jobs_total')})", "{{kind}} {{outcome}}"),
            bars=True,
            width=8,
        ),
        lines(
            "Jobs running",
            "1 while the worker is at one.",
            COUNT,
            Query(f"max by (kind) ({here('palimpsest_job_running')})", "{{kind}}"),
            width=8,
            between=SHARE,
            steps=True,
        ),
        lines(
            "Time of a job",
            "Mean of those that ended lately, by kind.",
            SECONDS,
            Query(
                f"sum by (kind) ({rate('palimpsest_job_duration_seconds_sum')}) / "
                f"(sum by (kind) ({rate('palimpsest_job_duration_seconds_count')}) > 0)",
                "{{kind}}",
            ),
            width=8,
        ),
    ]


def _processes() -> list[AnyPanel]:
    return [
        lines(
            "Memory of the GPU",
            "Of the learner's process: allocated is what tensors hold, reserved what torch keeps for them. Empty "
            "where learning runs on the CPU.",
            BYTES,
            Query(f"sum by (instance, kind) ({here('palimpsest_device_memory_bytes')})", "{{instance}} {{kind}}"),
            width=6,
        ),
        lines(
            "Memory of the processes",
            "Resident memory. A learner's is bounded by its settings: one that grows for days is a bug.",
            BYTES,
            Query(f"max by (instance) ({here('process_resident_memory_bytes')})", "{{instance}}"),
            width=6,
        ),
        lines(
            "CPU of the processes",
            "Cores in use: 1 is one core, all of the time.",
            COUNT,
            Query(f"max by (instance) ({rate('process_cpu_seconds_total')})", "{{instance}}"),
            width=6,
        ),
        lines(
            "Silence of the loop",
            "Since the loop of each process last turned. Where it is silent for longer than its setting "
            "stale_after_seconds, /livez says so, and a supervisor starts it anew.",
            SECONDS,
            Query(f"max by (instance) ({age('palimpsest_loop_last_turn_timestamp_seconds')})", "{{instance}}"),
            width=6,
        ),
    ]
