"""`palimpsest produce` as a person types it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from consumers import topics
from consumers.kafka_settings import KafkaSettings
from deploy.cli import palimpsest
from deploy.embedded_kafka import EmbeddedKafka
from pipeline.user_error import UserError
from tests.producers.test_sample_producer import lying_in

DEADLINE_SECONDS = 60.0


def run(*arguments: str) -> Result:
    """Errors of the user come through as they are raised; main() prints them."""
    return CliRunner().invoke(palimpsest, ["produce", *arguments], standalone_mode=False, catch_exceptions=True)


def test_help_has_an_example_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from deploy.cli import palimpsest;"
        "print(CliRunner().invoke(palimpsest, ['produce', '--help']).output);"
        "print(sorted({'torch', 'kafka', 'sklearn', 'mlflow', 'numpy'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "palimpsest produce --stream digits --dataset digits --schedule blurred" in output
    assert output.strip().endswith("[]")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "imagenet"], "unknown data set 'imagenet'"),
        (["--dataset", "digits", "--schedule", "sorted"], "unknown schedule 'sorted'"),
        (["--dataset", "digits", "--schedule", "split", "--blur", "0.5"], "schedule split has no --blur"),
        (["--dataset", "csv:nowhere.csv"], r"cannot read nowhere\.csv"),
        (["--dataset", "mnist", "--data-root", "nowhere"], "nowhere/MNIST/raw"),
    ],
)
def test_what_is_wrong_is_a_user_error(
    arguments: Sequence[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        raise run("--stream", "s", *arguments).exception or AssertionError("nothing was raised")


@pytest.mark.parametrize("arguments", [["--records", "0"], ["--rate", "0"], ["--unlabelled-share", "2"], []])
def test_options_out_of_range_or_missing_are_refused(arguments: Sequence[str]) -> None:
    result = run("--stream", "s", *(["--dataset", "digits"] if arguments else []), *arguments)
    assert isinstance(result.exception, click.UsageError)


@pytest.mark.kafka
def test_produces_and_says_so(kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path) -> None:
    (tmp_path / "news.tsv").write_text("".join(f"headline {i}\t{i % 3}\n" for i in range(30)))
    result = run(
        "--stream", stream_name, "--dataset", f"csv:{tmp_path / 'news.tsv'}", "--text-column", "1",
        "--label-column", "2", "--schedule", "recurring", "--rounds", "2", "--records", "100",
        "--unlabelled-share", "0.25", "--bootstrap-servers", kafka_broker.bootstrap_servers,
    )  # fmt: skip
    assert result.exception is None, result.exception
    assert result.output.startswith("produced: 100 records in ")
    assert f"75 to {stream_name}.samples and 25 to {stream_name}.unlabelled" in result.output
    (log,) = lying_in(
        KafkaSettings(bootstrap_servers=kafka_broker.bootstrap_servers), topics.samples(stream_name)
    ).values()
    headers = [dict(record.headers) for record in log]
    assert {h["ce_label"] for h in headers} == {b"0", b"1", b"2"}
    assert {h["content-type"] for h in headers} == {b"text/plain; charset=utf-8"}
    assert {h["ce_task"] for h in headers} == {b"0", b"1", b"2", b"3"}


@pytest.mark.kafka
def test_ctrl_c_ends_it_cleanly_and_plain_lines_tell_how_far_it_is(
    kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path
) -> None:
    errors = tmp_path / "stderr"
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy.cli", "produce", "--stream", stream_name, "--dataset", "digits",
             "--rate", "200", "--records", "100000"],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=os.environ | {"PALIMPSEST_KAFKA__BOOTSTRAP_SERVERS": kafka_broker.bootstrap_servers},
        )  # fmt: skip
        deadline = time.monotonic() + DEADLINE_SECONDS
        while "records" not in errors.read_text():
            assert process.poll() is None, errors.read_text()
            assert time.monotonic() < deadline, "no line of progress"
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 130
    first, *_ = errors.read_text().splitlines()
    assert first.startswith(f"{stream_name} (digits, split): ")
    assert " of 100,000 records, " in first
    assert first.endswith(" s left")
    assert output.startswith("stopped: ")
    delivered = int(output.split()[1].replace(",", ""))
    (log,) = lying_in(
        KafkaSettings(bootstrap_servers=kafka_broker.bootstrap_servers), topics.samples(stream_name)
    ).values()
    assert len(log) == delivered > 0
