"""`palimpsest learn` as a process of its own: what it says, how it ends, how it goes on."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from consumers import kafka_connection
from deploy.commands.fingerprint import command as fingerprint
from deploy.commands.snapshots import command as snapshots
from deploy.embedded_kafka import EmbeddedKafka
from deploy.local_port import free_port
from pipeline.codec.image import encode_png
from tests.consumers.digit_records import digit_images
from tests.deploy.command_line import Running, events, palimpsest
from tests.deploy.streams import kafka, send, settings_file
from tests.mlflow_database import mlflow_at

NO_REGISTRY = "registry: {enabled: false}\n"


def stopped(told: list[dict[str, Any]]) -> dict[str, Any]:
    assert told[-1]["event"] == "stopped", told[-1]
    return told[-1]


@pytest.mark.kafka
def test_a_signal_under_load_ends_it_with_a_snapshot_and_the_next_run_goes_on(
    kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path
) -> None:
    learn = ["learn", "--stream", stream_name, "--state", tmp_path / "state"]
    learn += ["--settings", settings_file(tmp_path, kafka_broker, NO_REGISTRY + "snapshots: {every_records: 100}\n")]
    total = done = 0
    for number in (signal.SIGTERM, signal.SIGINT):
        send(kafka_broker, stream_name, 2_000, seed=number)
        total += 2_000
        with Running(*learn) as running:
            running.wait_for_event("snapshot")
            running.signal(number)
            assert running.end() == 0
            told = running.events
        assert (told[0]["event"], told[0]["resumed"], told[0]["records_consumed"]) == ("started", done > 0, done)
        end = stopped(told)
        assert end["stopped_by"] == "signal"
        assert end["snapshot"] == [facts for facts in told if facts["event"] == "snapshot"][-1]["sequence"]
        assert end["records"] > 0
        done += end["records"]

    send(kafka_broker, stream_name, 100)
    total += 100
    rest = palimpsest(*learn, "--until-idle", 0.2)
    assert (rest.returncode, rest.stdout) == (0, ""), rest.stderr
    told = events(rest.stderr)
    assert (told[0]["resumed"], told[0]["records_consumed"]) == (True, done)
    assert (stopped(told)["stopped_by"], stopped(told)["records"]) == ("idle", total - done)


@pytest.mark.kafka
def test_of_two_at_once_the_first_is_fenced_and_says_so_in_one_line(
    kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path
) -> None:
    send(kafka_broker, stream_name, 100)
    quick = NO_REGISTRY.replace("}", "}\nsnapshots: {every_seconds: 0.2}\n")
    file = settings_file(tmp_path, kafka_broker, quick)
    file.write_text(file.read_text().replace("poll_seconds: 0.05", "poll_seconds: 0.05, heartbeat_seconds: 0.5"))
    learn = ("learn", "--stream", stream_name, "--state", tmp_path / "state", "--settings", file)
    with Running(*learn) as first:
        first.wait_for_event("snapshot")
        with Running(*learn) as second:
            assert first.end() == 4
            last = first.events[-1]
            assert (last["event"], last["exit_code"]) == ("failed", 4)
            assert "a newer learner has taken over" in last["message"]
            # The second one lives and learns on.
            send(kafka_broker, stream_name, 100, seed=1)
            second.wait_for_event("snapshot")
            second.signal(signal.SIGTERM)
            assert second.end() == 0
            assert stopped(second.events)["records"] > 0


@pytest.mark.kafka
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")
def test_versions_wait_for_mlflow_and_a_later_run_registers_them(
    kafka_broker: EmbeddedKafka, stream_name: str, tracking_uri: str, tmp_path: Path
) -> None:
    """Also: what is registered answers raw payloads through MLflow as anybody would call it."""
    send(kafka_broker, stream_name, 600)
    settings = settings_file(tmp_path, kafka_broker, "registry: {every_records: 250, drain_seconds: 200}\n")
    learn = ["learn", "--stream", stream_name, "--state", tmp_path / "state", "--until-idle", 0.2]
    learn += ["--settings", settings]
    away = palimpsest(*learn, "--tracking-uri", f"http://127.0.0.1:{free_port()}")
    assert away.returncode == 0, away.stderr
    told = events(away.stderr)
    waiting = stopped(told)["waiting_registrations"]
    assert stopped(told)["records"] == 600
    assert 2 <= waiting <= 3, "one that comes due while a commit is under way waits for the next"
    assert stopped(told)["seconds"] < 200, "it did not wait for MLflow as long as it may: MLflow was away, not slow"
    assert [facts["message"] for facts in told if facts["event"] == "warning"] == [
        f"{waiting} versions wait for MLflow; they are registered by a later run"
    ]
    back = palimpsest(*learn, "--tracking-uri", tracking_uri)
    assert back.returncode == 0, back.stderr
    told = events(back.stderr)
    assert (stopped(told)["records"], stopped(told)["waiting_registrations"]) == (0, 0)

    from model_store.mlflow_registry import MlflowRegistry

    versions = sorted(MlflowRegistry(tracking_uri).versions(stream_name), key=lambda version: version.version)
    assert [version.trigger for version in versions] == ["periodic", "periodic", "final"][-waiting:]
    assert [sum((version.offsets or {}).values()) for version in versions][-1] == 600
    assert len({version.snapshot_sha256 for version in versions}) == waiting

    import mlflow
    import pandas as pd  # type: ignore[import-untyped]

    with mlflow_at(tracking_uri):
        model = mlflow.pyfunc.load_model(f"models:/{stream_name}/{waiting}")
        payloads = [encode_png(image) for image in digit_images()[0][:20]]
        answers = model.predict(pd.DataFrame({"payload": payloads, "content_type": ["image/png"] * 20}))
    assert set(answers["label"]) <= {str(digit) for digit in range(10)}
    assert answers["error"].isna().all()


@pytest.mark.kafka
def test_snapshots_and_fingerprint_of_what_was_learnt(
    kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path
) -> None:
    """Another branch learns the same and disturbs nothing: the same records, the same model."""
    send(kafka_broker, stream_name, 150)
    settings = settings_file(tmp_path, kafka_broker)
    prints = []
    for branch in ("a", "b"):
        state = tmp_path / branch
        done = palimpsest(
            *("learn", "--stream", stream_name, "--state", state, "--branch", branch, "--until-idle", 0.2),
            *("--settings", settings, "--max-records", 100),
        )
        assert done.returncode == 0, done.stderr
        end = stopped(events(done.stderr))
        assert end["stopped_by"] == "max_records"
        assert 100 <= end["records"] < 120, "to the end of the update that reached it"
        listed = CliRunner().invoke(snapshots, ["--state", str(state)], catch_exceptions=False)
        assert (listed.exit_code, listed.stderr) == (0, "")
        header, line = listed.stdout.splitlines()
        assert header.split()[:5] == ["generation", "sequence", "records", "classes", "bytes"]
        assert line.split()[:3] == ["1", "1", str(end["records"])]
        printed = CliRunner().invoke(fingerprint, ["--state", str(state)], catch_exceptions=False)
        assert (printed.exit_code, printed.stderr) == (0, "")
        prints.append(printed.stdout)
    assert prints[0] == prints[1]
    assert len(prints[0].strip()) == 64
    with kafka_connection.admin(kafka(kafka_broker)) as admin:
        topics = [name for name in admin.list_topics() if name.startswith(f"{stream_name}.")]
    assert sorted(topics) == [f"{stream_name}.samples", f"{stream_name}.unlabelled"], "only main reports to the stream"


def test_nobody_at_the_address_is_one_line_and_code_2(tmp_path: Path) -> None:
    server = f"127.0.0.1:{free_port()}"
    impatient = {"PALIMPSEST_KAFKA__CONNECT_TIMEOUT_SECONDS": "1"}
    done = palimpsest("learn", "--stream", "s", "--state", tmp_path, "--bootstrap-servers", server, env=impatient)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"palimpsest: no broker is reachable at {server}")
    assert [entry.name for entry in tmp_path.iterdir()] == ["lock"]
