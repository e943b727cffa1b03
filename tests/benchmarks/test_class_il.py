from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.class_il import main, parse, run_once
from consumers.kafka_settings import KafkaSettings
from deploy.embedded_kafka import EmbeddedKafka
from pipeline.state import fingerprint

MNIST_ROOT = Path(os.environ.get("PALIMPSEST_TEST_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


@pytest.fixture
def mnist() -> Path:
    if not (MNIST_ROOT / "MNIST" / "raw").is_dir():
        if os.environ.get("PALIMPSEST_TEST_ALL") == "1":
            pytest.fail(f"NO MNIST in {MNIST_ROOT}, and PALIMPSEST_TEST_ALL=1 lets nothing be skipped")
        pytest.skip(f"NO MNIST in {MNIST_ROOT}: set PALIMPSEST_TEST_DATA to the folder that holds MNIST/raw")
    return MNIST_ROOT


@pytest.fixture(autouse=True)
def _torch_as_before() -> Iterator[None]:
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads)


@pytest.mark.kafka
def test_through_kafka_it_is_bit_for_bit_what_it_is_from_memory(
    mnist: Path, kafka_broker: EmbeddedKafka, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = kafka_broker.bootstrap_servers
    common = ["--data-root", str(mnist), "--records", "2000", "--seeds", "4", "--threads", "1", "--device", "cpu"]
    written = tmp_path / "made" / "runs.json"
    main([*common, "--via", "kafka", "--bootstrap-servers", server, "--json", str(written)])
    assert capsys.readouterr().out.startswith("der_pp, buffer 200, via kafka: ")
    result = json.loads(written.read_text())
    assert set(result) == {"runs", "mean", "std", "settings"}
    (of_kafka,) = result["runs"]
    assert set(of_kafka) == {"seed", "accuracy", "average_forgetting", "samples_per_second"}
    assert (result["mean"], result["std"]) == (of_kafka["accuracy"], 0.0)
    assert result["settings"]["via"] == "kafka"
    assert result["settings"]["learner"]["retention"] == {"der_pp": {"alpha": 0.2, "beta": 1.0}}

    of_memory, learner = run_once(parse(common), 4, None)
    assert (of_memory.seed, of_memory.accuracy, of_memory.average_forgetting) == (
        4,
        of_kafka["accuracy"],
        of_kafka["average_forgetting"],
    )
    assert of_kafka["accuracy"] > 0.3, "2000 records are few, but more than chance"
    again, through_kafka = run_once(parse(common), 4, KafkaSettings(bootstrap_servers=server))
    assert again.accuracy == of_memory.accuracy
    assert learner.learner is not None
    assert through_kafka.learner is not None
    assert fingerprint(through_kafka.learner.state()) == fingerprint(learner.learner.state())


def test_retention_forgets_less_than_none_and_the_figures_are_those_of_all_seeds(
    mnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--data-root", str(mnist), "--records", "1000", "--seeds", "0", "1", "--threads", "1", "--device", "cpu"]
    results = {}
    for retention in ("der_pp", "none"):
        file = tmp_path / f"{retention}.json"
        main([*common, "--retention", retention, "--json", str(file)])
        results[retention] = json.loads(file.read_text())
    assert "seed 0: accuracy " in capsys.readouterr().err
    for result in results.values():
        first, second = (run["accuracy"] for run in result["runs"])
        assert result["mean"] == pytest.approx((first + second) / 2)
        assert result["std"] == pytest.approx(abs(first - second) / 2**0.5)
    assert results["none"]["settings"]["learner"]["retention"] == {}
    assert results["der_pp"]["mean"] > results["none"]["mean"] + 0.1
    forgetting = {name: [run["average_forgetting"] for run in result["runs"]] for name, result in results.items()}
    assert max(forgetting["der_pp"]) < min(forgetting["none"])


def test_a_wrong_setting_is_named_before_anything_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--retention", "der_qq"], ["--buffer", "0"]):
        with pytest.raises(SystemExit) as ended:
            parse(arguments)
        assert ended.value.code == 2
    err = capsys.readouterr().err
    assert "error: retention: unknown retention term 'der_qq'; there are der, " in err
    assert "error: replay.capacity: Input should be greater than or equal to 1" in err
