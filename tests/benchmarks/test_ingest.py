from __future__ import annotations

import json
import statistics
from typing import Any

import pytest

from benchmarks.ingest import main, parse
from benchmarks.ingest_payloads import arrays, jpegs
from benchmarks.ingest_readers import raw_options
from consumers import topics
from consumers.kafka_record_source import KafkaRecordSource
from consumers.kafka_settings import KafkaSettings
from deploy.embedded_kafka import EmbeddedKafka
from pipeline.codec.record_decoder import RecordDecoder
from pipeline.settings import InputSettings

_RECORDS = 700


@pytest.fixture(scope="module")
def result(kafka_broker: EmbeddedKafka, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    written = tmp_path_factory.mktemp("ingest") / "made" / "ingest.json"
    common = ["--records", str(_RECORDS), "--repeats", "2", "--jpeg-side", "16"]
    main([*common, "--bootstrap-servers", kafka_broker.bootstrap_servers, "--json", str(written)])
    read: dict[str, Any] = json.loads(written.read_text())
    return read


@pytest.mark.kafka
def test_every_record_is_put_into_one_batch(result: dict[str, Any]) -> None:
    assert [kind["payloads"] for kind in result["kinds"]] == ["arrays", "jpegs-16"]
    for kind in result["kinds"]:
        intake = kind["intake"]
        assert intake["trainable"] + intake["held_out"] == _RECORDS
        assert intake["duplicates"] == intake["dead"] == 0
        assert intake["held_out"] > 0
        # all are full but the last, which is flushed
        assert intake["batches"] in (-(-intake["trainable"] // 10), -(-intake["trainable"] // 10) + 1)
        for turns in kind["turns"].values():
            assert [turn["records"] for turn in turns] == [_RECORDS, _RECORDS]


@pytest.mark.kafka
def test_ratios_are_quotients_of_turns_beside_each_other(result: dict[str, Any]) -> None:
    for kind in result["kinds"]:
        assert set(kind["turns"]) == {"ours", "raw", "script"}
        rates = {
            reader: [turn["records"] / turn["seconds"] for turn in turns] for reader, turns in kind["turns"].items()
        }
        for reader, of_turns in rates.items():
            told = kind["records_per_second"][reader]
            assert told["each"] == pytest.approx(of_turns)
            assert (told["least"], told["most"]) == pytest.approx((min(of_turns), max(of_turns)))
        for other in ("raw", "script"):
            ratios = [ours / theirs for ours, theirs in zip(rates["ours"], rates[other], strict=True)]
            assert kind[f"ratio_to_{other}"]["each"] == pytest.approx(ratios)
            assert kind[f"ratio_to_{other}"]["median"] == pytest.approx(statistics.median(ratios))
        processor = statistics.median(
            1e6 * turn["processor_seconds"] / turn["records"] for turn in kind["turns"]["ours"]
        )
        assert kind["processor_microseconds"]["ours"] == pytest.approx(processor)
        assert kind["decoding_share"] == pytest.approx(kind["stages"]["decode"] / processor)
        assert all(microseconds > 0 for microseconds in kind["stages"].values())


@pytest.mark.kafka
def test_the_file_says_when_how_and_where(result: dict[str, Any]) -> None:
    assert result["command"].startswith("python -m benchmarks.ingest --records 700 --repeats 2")
    assert result["date"].endswith("+00:00")
    assert "Python" in result["machine"]
    assert set(result["versions"]) == {"palimpsest", "numpy", "kafka-python", "pillow"}
    assert (result["records"], result["repeats"]) == (_RECORDS, 2)


@pytest.mark.kafka
def test_raw_fetches_as_ours_does(kafka_broker: EmbeddedKafka, stream_name: str) -> None:
    servers = kafka_broker.bootstrap_servers
    kafka = KafkaSettings(bootstrap_servers=servers)
    topics.ensure_source_topics(kafka, stream_name)
    with KafkaRecordSource(kafka, topics.check_samples_topic(kafka, stream_name).partitions) as source:
        ours = source._consumer.config
    raw = {**type(source._consumer).DEFAULT_CONFIG, **raw_options(servers)}
    differing = {name for name in raw if name in ours and ours[name] != raw[name]}
    # who asks, how long a connection is tried for, and our hold on the client's sockets: none is part of a fetch
    assert differing <= {
        "client_id",
        "bootstrap_timeout_ms",
        "reconnect_backoff_max_ms",
        "kafka_client",
        "api_version",  # what the broker said it is
        "default_offset_commit_callback",  # commits are off
    }


def test_payloads_are_what_they_are_said_to_be() -> None:
    decoder = RecordDecoder(InputSettings())
    x, kind = decoder.decode_payload(*arrays(20).payload(3))
    assert (x.shape, str(x.dtype), kind) == ((28, 28), "float32", "vector")
    x, kind = decoder.decode_payload(*jpegs(20, 24).payload(3))
    assert (x.shape, str(x.dtype), kind) == ((3, 24, 24), "uint8", "image")
    of_many = jpegs(2_000, 8)
    assert of_many.payload(1_999) == of_many.payload(1_999 % 512), "payloads begin again"
    assert of_many.subject(1_999) != of_many.subject(1_999 % 512), "but are originals of their own"


def test_what_cannot_be_measured_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--records", "0"], ["--no-arrays", "--jpeg-side"], ["--jpeg-side", "0"]):
        with pytest.raises(SystemExit) as ended:
            parse(arguments)
        assert ended.value.code == 2
    err = capsys.readouterr().err
    assert "--records is 1 or more" in err
    assert "nothing to read" in err
    assert "--jpeg-side is 1 or more" in err
