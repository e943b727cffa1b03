from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import accuracy
from benchmarks.accuracy import main, parse, settings_for
from benchmarks.one_pass import run_once
from benchmarks.streams import benchmark_streams
from consumers.kafka_settings import KafkaSettings
from deploy.embedded_kafka import EmbeddedKafka
from pipeline.state import fingerprint


@pytest.mark.kafka
def test_through_kafka_it_is_bit_for_bit_what_it_is_from_memory(
    mnist: Path, kafka_broker: EmbeddedKafka, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = kafka_broker.bootstrap_servers
    common = ["--data-root", str(mnist), "--records", "2000", "--seeds", "4", "--device", "cpu", "--methods", "der_pp"]
    written = tmp_path / "made" / "runs.json"
    main([*common, "--via", "kafka", "--bootstrap-servers", server, "--json", str(written)])
    assert "\nder_pp, buffer 200: " in capsys.readouterr().out
    result = json.loads(written.read_text())
    (row,) = result["rows"]
    (of_kafka,) = row["runs"]
    assert (row["mean"], row["std"]) == (of_kafka["accuracy"], 0.0)
    assert (result["via"], result["stream"], row["method"]) == ("kafka", "split-mnist", "der_pp")
    assert row["learner"]["retention"] == {"der_pp": {"alpha": 0.2, "beta": 1.0}}
    assert len(of_kafka["step_accuracies"]) == 5
    assert of_kafka["step_accuracies"][-1] == pytest.approx(of_kafka["accuracy"])

    args = parse(common)
    settings = settings_for(args, "der_pp", 200, 4)
    opened = benchmark_streams()["split-mnist"].open(mnist, 4, records=2000)
    of_memory, learner = run_once(opened, settings, None)
    assert (of_memory.seed, of_memory.accuracy, of_memory.average_forgetting) == (
        4,
        of_kafka["accuracy"],
        of_kafka["average_forgetting"],
    )
    assert of_kafka["accuracy"] > 0.3, "2000 records are few, but more than chance"
    again, through_kafka = run_once(opened, settings, KafkaSettings(bootstrap_servers=server))
    assert again.accuracy == of_memory.accuracy
    assert learner.learner is not None
    assert through_kafka.learner is not None
    assert fingerprint(through_kafka.learner.state()) == fingerprint(learner.learner.state())


def test_retention_forgets_less_than_none_and_the_figures_are_those_of_all_seeds(
    mnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--data-root", str(mnist), "--records", "1000", "--seeds", "0", "1", "--device", "cpu"]
    file = tmp_path / "rows.json"
    main([*common, "--methods", "der_pp", "finetune", "--json", str(file)])
    results = {row["method"]: row for row in json.loads(file.read_text())["rows"]}
    assert "seed 0: accuracy " in capsys.readouterr().err
    for result in results.values():
        first, second = (run["accuracy"] for run in result["runs"])
        assert result["mean"] == pytest.approx((first + second) / 2)
        assert result["std"] == pytest.approx(abs(first - second) / 2**0.5)
    assert results["finetune"]["learner"]["retention"] == {}
    assert results["der_pp"]["mean"] > results["finetune"]["mean"] + 0.1
    forgetting = {name: [run["average_forgetting"] for run in result["runs"]] for name, result in results.items()}
    assert max(forgetting["der_pp"]) < min(forgetting["finetune"])


def test_a_wrong_setting_is_named_before_anything_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--set", '{"retention": {"der_qq": {}}}'], ["--buffers", "0"]):
        with pytest.raises(SystemExit) as ended:
            parse(arguments)
        assert ended.value.code == 2
    err = capsys.readouterr().err
    assert "error: retention: unknown retention term 'der_qq'; there are der, " in err
    assert "error: replay.capacity: Input should be greater than or equal to 1" in err


def test_mnist_360_is_drawn_as_published(mnist: Path) -> None:
    opened = benchmark_streams()["mnist-360"].open(mnist, 3)
    stream, test = opened.stream, opened.test
    labels_N = stream.dataset.labels[stream.item_N]
    assert set(labels_N.tolist()) == set(range(9))
    assert int(stream.step_N.max()) + 1 == 27  # nine pairs, three rounds
    of_zero = np.flatnonzero(stream.dataset.labels == 0)
    longest = len(of_zero) // 6 + 1
    first = stream.item_N[(stream.step_N == 0) & (labels_N == 0)]
    # Loaders are popped from the end: the first part is the last, and shortest, sixth of the class's images.
    assert set(first.tolist()) <= set(of_zero[5 * longest :].tolist())
    assert len(set(first.tolist())) < len(first), "with replacement"
    assert (stream.repeat_N == 0).all()
    assert len(test.labels) == 10_000 - 1_009  # MNIST's test part less its nines
    upright, turned = test.x[0], test.x[16]  # the same image, sixteen views later
    assert not np.array_equal(upright, turned)
    assert test.labels[0] == "0"


def test_joint_training_sees_all_classes_from_the_beginning(mnist: Path) -> None:
    for name in ("split-mnist", "mnist-360"):
        stream = benchmark_streams()[name].open(mnist, 0, shuffled=True).stream
        labels = {int(label) for label in stream.dataset.labels[stream.item_N[:200]]}
        assert len(labels) >= 9


@pytest.mark.kafka
def test_epochs_replay_each_step_of_the_log(mnist: Path, kafka_broker: EmbeddedKafka) -> None:
    args = parse(["--epochs", "3", "--device", "cpu"])
    settings = settings_for(args, "er", 50, 0)
    assert settings.deduplication_window == 0
    opened = benchmark_streams()["split-mnist"].open(mnist, 0, records=300)
    kafka = KafkaSettings(bootstrap_servers=kafka_broker.bootstrap_servers)
    (run, learner), (through_kafka, _) = (run_once(opened, settings, via, epochs=3) for via in (None, kafka))
    assert learner.records_trained == 900
    assert len(run.step_accuracies) == 5
    assert run.accuracy == through_kafka.accuracy
    once, _ = run_once(opened, settings_for(parse(["--device", "cpu"]), "er", 50, 0), None)
    assert run.step_accuracies[0] > once.step_accuracies[0]


def test_a_paper_has_its_authors_arguments_where_they_differ() -> None:
    for buffer, draw_size, alpha in ((200, 16, 0.5), (1000, 128, 0.2), (300, 128, 0.2)):
        settings = settings_for(parse(["--stream", "mnist-360"]), "der_pp", buffer, 0)
        assert settings.replay.draw_size == draw_size
        assert settings.retention["der_pp"].model_dump() == {"alpha": alpha, "beta": 1.0}
        assert settings.optimizer.max_gradient_norm is None


def test_runs_beside_each_other_are_those_of_one_after_the_other() -> None:
    results: list[list[object]] = []
    for jobs in (1, 2):
        with accuracy._runner(jobs) as run_beside:
            begun = [run_beside(divmod, 17, divisor) for divisor in (5, 3, 4)]
            results.append([finish() for finish in begun])
    assert results == [[(3, 2), (5, 2), (4, 1)]] * 2


def test_for_classes_that_come_back_only_incoming_loss_and_anchor_differ() -> None:
    args = parse(["--stream", "mnist-360"])
    turned, recurring = (settings_for(args, name, 500, 0) for name in ("palimpsest_turned", "palimpsest_recurring"))
    assert (turned.chosen_incoming_loss, recurring.chosen_incoming_loss) == ("er_ace", "cross_entropy")
    assert turned.retention["der_pp"] == recurring.retention["der_pp"]
    assert set(turned.retention) - set(recurring.retention) == {"ewc_pp"}
    these = {"incoming_loss", "retention"}
    assert turned.model_dump(exclude=these) == recurring.model_dump(exclude=these)
