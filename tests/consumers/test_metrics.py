"""The numbers that Prometheus scrapes, beside what the learner did."""

from __future__ import annotations

import math
import subprocess
import time
from pathlib import Path

import pytest
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from consumers.class_metrics import ClassMetrics
from consumers.metrics import LearnerMetrics
from consumers.observers import Observers
from consumers.process_settings import MetricsSettings, SnapshotSettings
from pipeline.evaluation.forgetting import ClassEvaluation, EvaluationReport
from pipeline.record import Partition
from pipeline.sample import DeadLetterReason
from tests.consumers.digit_records import Written, digit_stream, of_fate
from tests.consumers.learner_world import FullDisk, Witness, World
from tests.system_package import require_program

# The names that dashboards and alerts rely on.
PROMISED = {
    "palimpsest_samples_consumed_total": {"topic", "partition"},
    "palimpsest_samples_trained_total": {"source"},
    "palimpsest_dead_letters_total": {"reason"},
    "palimpsest_consumer_lag_records": {"topic", "partition"},
    "palimpsest_event_lag_seconds": set(),
    "palimpsest_prequential_accuracy_ratio": set(),
    "palimpsest_class_accuracy_ratio": {"class_name"},
    "palimpsest_class_forgetting_ratio": {"class_name"},
    "palimpsest_average_forgetting_ratio": set(),
    "palimpsest_backward_transfer_ratio": set(),
    "palimpsest_early_accuracy_gain_ratio": set(),
    "palimpsest_known_classes": set(),
    "palimpsest_class_held_out_samples": {"class_name"},
    "palimpsest_evaluation_last_timestamp_seconds": set(),
    "palimpsest_evaluation_every_records": set(),
    "palimpsest_unevaluated_records": set(),
    "palimpsest_loop_last_turn_timestamp_seconds": set(),
    "palimpsest_loop_stale_after_seconds": set(),
    "palimpsest_replay_samples": {"class_name"},
    "palimpsest_loss": {"term"},
    "palimpsest_step_duration_seconds_bucket": {"stage", "le"},
    "palimpsest_snapshot_duration_seconds_bucket": {"le"},
    "palimpsest_snapshot_last_success_timestamp_seconds": set(),
    "palimpsest_snapshot_every_seconds": set(),
    "palimpsest_drift_events_total": {"detector"},
    "palimpsest_consolidations_total": {"outcome"},
    "palimpsest_expansions_total": {"outcome"},
    "palimpsest_restructurings_requested_total": {"kind", "reason"},
    "palimpsest_restructuring_waiting": {"kind"},
    "palimpsest_network_parameters": set(),
    "palimpsest_sub_modules": set(),
    "palimpsest_build_info": {"version", "torch", "stream", "branch"},
    "palimpsest_relearning_records": set(),
    "palimpsest_relearning_expected_seconds": set(),
    "palimpsest_registrations_waiting": set(),
    "palimpsest_model_info": {"role", "version", "run_id"},
}
RECORDS = digit_stream(90)


def samples(metrics: LearnerMetrics) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """{name: {labels: value}} of the page."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(generate_latest(metrics.registry).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def new_metrics(**settings: int) -> LearnerMetrics:
    return LearnerMetrics(MetricsSettings.model_validate(settings), stream="digits", branch="main")


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> tuple[LearnerMetrics, Witness, World]:
    """A whole run's metrics, and what a witness saw of it."""
    world = World(tmp_path_factory.mktemp("metrics"))
    world.write(RECORDS)
    metrics, witness = new_metrics(), Witness()
    world.learn(observer=Observers([metrics, witness]))
    metrics.registered("3", "run")
    return metrics, witness, world


Learnt = tuple[LearnerMetrics, Witness, World]


def test_every_promised_name_is_there_with_its_labels(learnt: Learnt) -> None:
    found = samples(learnt[0])
    for name, labels in PROMISED.items():
        assert name in found, name
        assert {frozenset(dict(key)) for key in found[name]} == {frozenset(labels)}, name
    assert not [name for name in found if not name.startswith(("palimpsest_", "process_"))]
    assert found["process_resident_memory_bytes"][()] > 1e6
    ratios = {name: value for name, series in found.items() if name.endswith("_ratio") for value in series.values()}
    unknown = {name for name, value in ratios.items() if math.isnan(value)}
    assert unknown == {"palimpsest_early_accuracy_gain_ratio"}, "no class has had 50 records"
    assert all(-1 <= value <= 1 for name, value in ratios.items() if name not in unknown)


def test_the_counts_are_those_of_the_run(learnt: Learnt) -> None:
    metrics, witness, world = learnt
    found = samples(metrics)
    state = world.newest().state
    partition = (("partition", "0"), ("topic", "digits.samples"))
    assert found["palimpsest_samples_consumed_total"] == {partition: len(RECORDS)}
    assert found["palimpsest_consumer_lag_records"] == {partition: 0}
    updates = [step.update for step in witness.steps if step.update is not None]
    assert found["palimpsest_samples_trained_total"] == {
        (("source", "incoming"),): state["records_trained"],
        (("source", "replay"),): sum(update.replayed_rows for update in updates),
    }
    # Two draws of DER++ in each update, of at most 24 rows each and at most as many as the reservoir holds.
    assert updates[0].replayed_rows == 0
    assert updates[1].replayed_rows == 2 * 10
    assert updates[-1].replayed_rows == 2 * 24
    assert found["palimpsest_samples_held_out_total"][()] == state["records_held_out"]
    assert found["palimpsest_duplicates_total"][()] == len(of_fate(RECORDS, "repeat"))
    dead = found["palimpsest_dead_letters_total"]
    assert sum(dead.values()) == len(of_fate(RECORDS, "bad"))
    assert len(dead) == len(DeadLetterReason), "a counter that begins with its first increment hides it from rate()"
    assert found["palimpsest_known_classes"][()] == 6
    assert sum(found["palimpsest_replay_samples"].values()) == 60
    assert found["palimpsest_snapshot_duration_seconds_count"][()] == len(witness.commits)
    stages = {dict(labels)["stage"] for labels in found["palimpsest_step_duration_seconds_count"]}
    assert {"intake", "draw", "forward", "backward", "optimizer", "insert", "evaluate"} <= stages
    terms = {dict(labels)["term"] for labels in found["palimpsest_loss"]}
    assert "incoming" in terms
    assert found["palimpsest_model_info"] == {(("role", "newest"), ("run_id", "run"), ("version", "3")): 1}


def test_the_newest_evaluation_is_shown(learnt: Learnt) -> None:
    metrics, witness, _ = learnt
    report = witness.evaluations[-1]
    found = samples(metrics)
    assert found["palimpsest_class_accuracy_ratio"] == {
        (("class_name", entry.name),): pytest.approx(entry.accuracy) for entry in report.classes
    }
    assert found["palimpsest_class_forgetting_ratio"] == {
        (("class_name", entry.name),): pytest.approx(entry.forgetting) for entry in report.classes
    }
    assert found["palimpsest_average_forgetting_ratio"][()] == pytest.approx(report.average_forgetting)
    assert found["palimpsest_backward_transfer_ratio"][()] == pytest.approx(report.backward_transfer)
    assert found["palimpsest_class_held_out_samples"] == {
        (("class_name", entry.name),): entry.n for entry in report.classes
    }
    assert time.time() - 600 < found["palimpsest_evaluation_last_timestamp_seconds"][()] <= time.time()


def test_what_is_not_known_yet_is_not_shown_as_zero() -> None:
    found = samples(new_metrics())
    for name in (
        "prequential_accuracy_ratio",
        "average_forgetting_ratio",
        "evaluation_last_timestamp_seconds",
        "snapshot_last_success_timestamp_seconds",
    ):
        assert math.isnan(found[f"palimpsest_{name}"][()]), name


def test_a_learner_that_goes_on_shows_its_last_evaluation_at_once(learnt: Learnt) -> None:
    world = learnt[2]
    metrics = new_metrics()
    ready = [metrics.ready]
    process = world.process(observer=metrics)
    process.start()
    assert [*ready, metrics.ready] == [False, True]
    newest = process.learner.forgetting.newest_report()
    assert newest is not None
    found = samples(metrics)
    assert len(found["palimpsest_class_accuracy_ratio"]) == len(newest.classes)
    assert math.isnan(found["palimpsest_evaluation_last_timestamp_seconds"][()]), "when it was made nobody knows"
    assert found["palimpsest_unevaluated_records"][()] == process.learner.records_consumed - newest.at_records
    assert found["palimpsest_drift_events_total"] == {(("detector", "adwin"),): 0}, "there before its first drift"
    assert found["palimpsest_known_classes"][()] == 6


def test_snapshots_that_could_not_be_written_are_counted(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.write(RECORDS[:60])
    metrics = new_metrics()
    disk = FullDisk(world.folder / "snapshots")
    with pytest.raises(OSError, match="No space"):
        world.learn(store=disk, observer=metrics)
    assert samples(metrics)["palimpsest_snapshot_failures_total"][()] == disk.tries == 2


def evaluation(accuracies: dict[str, float]) -> EvaluationReport:
    classes = tuple(
        ClassEvaluation(
            name=name,
            accuracy=accuracy,
            n=30,
            standard_error=0.0,
            best=1.0,
            forgetting=1.0 - accuracy,
            at_burst_end=None,
            in_averages=True,
            at_records=1,
        )
        for name, accuracy in accuracies.items()
    )
    return EvaluationReport(
        at_records=1,
        classes=classes,
        average_accuracy=0.5,
        average_forgetting=0.5,
        backward_transfer=None,
        worst_class=None,
        known_classes=len(classes),
    )


def shown(limit: int, accuracies: dict[str, float], replay: dict[str, int]) -> dict[str, dict[str, float]]:
    metrics = ClassMetrics(limit)
    metrics.show(evaluation(accuracies), replay)
    return {
        family.name.removeprefix("palimpsest_"): {
            sample.labels["class_name"]: sample.value for sample in family.samples
        }
        for family in metrics.collect()
    }


def test_the_worst_classes_have_series_and_the_rest_share_one() -> None:
    accuracies = {"a": 0.9, "b": 0.2, "c": 0.8, "d": 0.1}
    found = shown(2, accuracies, {"a": 1, "b": 2, "c": 3, "d": 4})
    assert found["class_accuracy_ratio"] == {"d": 0.1, "b": 0.2, "other": pytest.approx(0.85)}
    assert found["class_forgetting_ratio"] == {"d": 0.9, "b": 0.8, "other": pytest.approx(0.15)}
    assert found["replay_samples"] == {"d": 4, "b": 2, "other": 4}
    assert found["class_held_out_samples"] == {"d": 30, "b": 30, "other": 60}


def test_a_class_that_is_called_other_does_not_hide_the_rest() -> None:
    found = shown(2, {"other": 0.0, "b": 0.2, "c": 0.9, "d": 0.7}, {"other": 1, "b": 2, "c": 3, "d": 4})
    assert found["class_accuracy_ratio"] == {"b": 0.2, "other": pytest.approx((0.0 + 0.9 + 0.7) / 3)}
    assert found["replay_samples"] == {"b": 2, "other": 8}
    assert shown(9, {"other": 0.5, "b": 0.2}, {"other": 1, "b": 1})["class_accuracy_ratio"] == {"b": 0.2, "other": 0.5}


def test_records_since_the_newest_evaluation_are_counted_also_where_none_comes(tmp_path: Path) -> None:
    """A stream of records that nothing can be learnt from has no evaluations, and this is how one sees it."""
    world = World(tmp_path)
    world.write(of_fate(RECORDS, "bad"))
    metrics = new_metrics()
    world.learn(observer=metrics)
    found = samples(metrics)
    assert found["palimpsest_unevaluated_records"][()] == len(of_fate(RECORDS, "bad")) > 0
    assert found["palimpsest_evaluation_every_records"][()] == world.settings.evaluation.every_records


def test_a_partition_is_counted_before_its_first_record() -> None:
    metrics = new_metrics()
    metrics.turned({Partition("digits.samples", 1): 7})
    found = samples(metrics)
    for name in ("samples_consumed_total", "accepted_gaps_total", "accepted_gap_records_total"):
        assert found[f"palimpsest_{name}"] == {(("partition", "1"), ("topic", "digits.samples")): 0}


def test_when_the_loop_last_turned_is_a_unix_time() -> None:
    metrics = new_metrics(stale_after_seconds=17)
    metrics.last_turn = time.monotonic() - 100
    found = samples(metrics)
    assert time.time() - found["palimpsest_loop_last_turn_timestamp_seconds"][()] == pytest.approx(100, abs=5)
    assert found["palimpsest_loop_stale_after_seconds"][()] == 17


def test_how_often_snapshots_are_to_come_is_shown() -> None:
    settings = SnapshotSettings(every_seconds=12.5)
    metrics = LearnerMetrics(MetricsSettings(), stream="digits", branch="main", snapshots=settings)
    assert samples(metrics)["palimpsest_snapshot_every_seconds"][()] == 12.5


def test_lag_is_shown_and_the_loop_counts_as_turning() -> None:
    metrics = new_metrics()
    metrics.last_turn = 0.0
    metrics.turned({Partition("digits.samples", 1): 7})
    assert samples(metrics)["palimpsest_consumer_lag_records"] == {(("partition", "1"), ("topic", "digits.samples")): 7}
    assert metrics.last_turn > 0
    metrics.turned({Partition("digits.samples", 1): 7}, away_seconds=12.5)
    assert samples(metrics)["palimpsest_brokers_away_seconds"] == {(): 12.5}
    metrics.turned({Partition("digits.samples", 1): 8})
    assert samples(metrics)["palimpsest_brokers_away_seconds"] == {(): 0.0}


def test_promtool_finds_nothing_to_complain_about(learnt: Learnt) -> None:
    promtool = require_program("promtool", package="prometheus")
    page = generate_latest(learnt[0].registry)
    done = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.decode(), done.stderr.decode()) == (0, "", "")


def test_the_age_of_the_newest_record_grows_though_nothing_is_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics, world = new_metrics(), World(tmp_path)
    assert math.isnan(samples(metrics)["palimpsest_event_lag_seconds"][()])
    world.write(
        Written(value=record.value, headers=(*record.headers, ("ce_time", b"2023-11-14T22:13:20Z")))
        for record in digit_stream(5, clean=True)
    )
    world.learn(observer=metrics)
    for now, age in ((1_700_000_007.0, 7.0), (1_700_000_300.0, 300.0), (1_600_000_000.0, 0.0)):
        monkeypatch.setattr("consumers.metrics.time.time", lambda now=now: now)
        assert samples(metrics)["palimpsest_event_lag_seconds"][()] == age


def test_waiting_registrations_are_counted_at_each_scrape() -> None:
    metrics, waiting = new_metrics(), [1, 2, 3]
    metrics.watch_registrations(lambda: len(waiting))
    assert samples(metrics)["palimpsest_registrations_waiting"][()] == 3
    waiting.clear()
    assert samples(metrics)["palimpsest_registrations_waiting"][()] == 0


def test_a_disk_that_does_not_say_what_waits_hides_no_other_series() -> None:
    def broken() -> int:
        raise OSError("Stale file handle")

    metrics = new_metrics()
    metrics.watch_registrations(broken)
    found = samples(metrics)
    assert math.isnan(found["palimpsest_registrations_waiting"][()])
    assert found["process_resident_memory_bytes"][()] > 0
