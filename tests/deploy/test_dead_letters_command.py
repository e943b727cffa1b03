"""`palimpsest dead-letters` on what a real learner could not learn from, and back again."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import confluent_kafka
import pytest
from click.testing import CliRunner, Result

from consumers import dead_letters, topics
from consumers.dead_letter_reader import original_headers
from consumers.dead_letter_replay import ReplayReport, replay_dead_letters
from consumers.kafka_record_source import KafkaRecordSource
from consumers.record_source import read_records
from deploy.commands.dead_letters import command
from deploy.embedded_kafka import EmbeddedKafka
from deploy.learning import open_learner
from deploy.printable import preview, printable, printable_bytes
from deploy.rewinding import rewind
from deploy.settings import load_settings
from model_store.fault_points import on_fault_point
from model_store.snapshot import Snapshot
from model_store.snapshot_store import SnapshotStore
from pipeline.codec.image import encode_png
from pipeline.record import Partition, Record
from pipeline.user_error import UserError
from tests.consumers.digit_records import Written, digit, digit_images, digit_stream
from tests.deploy.streams import kafka, settings_file

DEADLINE_SECONDS = 30.0
NO_REGISTRY = "registry: {enabled: false}\n"
ANSI = "\x1b[2J\u202e"


def larger_digit(item: int) -> Written:
    """The same digit as a larger image than the stream's, without an id of its own."""
    good = digit(item)
    x = digit_images()[0][item].repeat(2, axis=1).repeat(2, axis=2)
    headers = tuple(header for header in good.headers if header[0] not in ("ce_id", "ce_source"))
    return Written(value=encode_png(x), headers=headers, key=good.key, fate="bad")


LARGER = [larger_digit(item) for item in range(12)]
BROKEN = [
    Written(
        value=b"\x89PNG\x00 broken", headers=(*digit(3).headers[:1], ("ce_id", ANSI.encode()), *digit(3).headers[2:])
    ),
    Written(value=b'{"payload": [', headers=(("content-type", b"application/json"), ("ce_label", b"1"), ("x", None))),
]


class StreamWithDeadLetters:
    """A stream of digits of which some are broken and some larger, on a real broker, and its learners."""

    def __init__(self, broker: EmbeddedKafka, stream: str, folder: Path) -> None:
        self.stream = stream
        self.folder = folder
        self.kafka = kafka(broker)
        self.file = settings_file(folder, broker, NO_REGISTRY)
        self.settings = load_settings(self.file)
        topics.ensure_source_topics(self.kafka, stream)
        self.write([*digit_stream(20, clean=True), *BROKEN, *LARGER])

    def write(self, records: list[Written]) -> None:
        producer = confluent_kafka.Producer({"bootstrap.servers": self.kafka.bootstrap_servers, "log_level": 2})
        for record in records:
            producer.produce(topics.samples(self.stream), record.value, record.key, headers=list(record.headers))
        assert producer.flush(DEADLINE_SECONDS) == 0

    def learn(self, branch: str = "main") -> Snapshot:
        state = self.folder / branch
        with open_learner(stream=self.stream, state=state, settings=self.settings, branch=branch) as opened:
            opened.process.run(stop=threading.Event(), until_idle_seconds=0.3)
        snapshot = SnapshotStore(state / "snapshots").newest_whole().snapshot
        assert snapshot is not None
        return snapshot

    def begin_branch(self, branch: str, where: str) -> None:
        assert rewind(
            stream=self.stream,
            branch=branch,
            state=self.folder / branch,
            settings=self.settings,
            from_state=None,
            from_snapshot=None,
            from_offsets=where,
        )

    def read(self, topic: str) -> list[Record]:
        with KafkaRecordSource(self.kafka, [Partition(topic, 0)]) as source:
            return list(read_records(source, source.beginning_offsets(), source.end_offsets()))

    def dead(self) -> list[Record]:
        return self.read(topics.dead_letters(self.stream))

    def call(self, name: str, *arguments: object) -> Result:
        """In this process: what starts Python anew for every question takes its time."""
        return CliRunner().invoke(
            command,
            [name, "--stream", self.stream, "--settings", str(self.file), *map(str, arguments)],
            catch_exceptions=False,
        )


@pytest.fixture
def stream(kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path) -> StreamWithDeadLetters:
    return StreamWithDeadLetters(kafka_broker, stream_name, tmp_path)


@pytest.mark.kafka
def test_dead_letters_are_listed_shown_and_replayed(stream: StreamWithDeadLetters) -> None:
    stream.learn()
    first = stream.dead()
    assert len(first) == 14

    # What there is.
    told = stream.call("list", "--json")
    assert ANSI[0] not in told.output
    assert ANSI[-1] not in told.output
    *lines, counts = map(json.loads, told.output.splitlines())
    assert counts == {
        "counts": {"broken_image": 1, "broken_json": 1, "wrong_shape": 12},
        "replayed": {"broken_image": 0, "broken_json": 0, "wrong_shape": 0},
        "foreign": 0,
    }
    assert [(line["reason"], line["stood_at"], line["ce_id"]) for line in lines[:2]] == [
        ("broken_image", "0:60", ANSI),
        ("broken_json", "0:61", None),
    ]
    text = stream.call("list", "--reason", "broken_image", "--reason", "broken_json", "--limit", 1).output
    assert [line.split()[1] for line in text.splitlines()[1:2]] == ["broken_json"], "the newest"
    assert text.endswith("2 dead letters, of which 0 were replayed\n")
    assert all(character.isprintable() or character == "\n" for character in stream.call("list").output)

    # One of them.
    offset = lines[0]["offset"]
    shown = stream.call("show", "--offset", offset, "--value-to", stream.folder / "value")
    assert (stream.folder / "value").read_bytes() == BROKEN[0].value
    assert all(character.isprintable() or character == "\n" for character in shown.output)
    assert "header:    ce_id: \\x1b[2J\\u202e" in shown.output
    assert "89 50 4e 47 00" in shown.output
    assert "header:    x: null" in stream.call("show", "--offset", lines[1]["offset"]).output

    # Back they go, one reason today and the rest tomorrow.
    dry = stream.call("replay", "--dry-run").output
    assert "would send 14" in dry
    end = len(stream.read(topics.samples(stream.stream)))
    stream.begin_branch("larger", "end")
    replayed = stream.call("replay", "--reason", "broken_json")
    assert "sent 1 (broken_json 1)" in replayed.output
    assert "takes them as ordinary new records" in replayed.output
    assert "sent 13 (wrong_shape 12, broken_image 1)" in stream.call("replay").output
    assert "sent 0\n" in stream.call("replay").output
    back = stream.read(topics.samples(stream.stream))[end:]
    assert [record.value for record in back] == [record.value for record in (BROKEN[1], BROKEN[0], *LARGER)]

    # Still bad for main: they come back once, each with where it stood last; its own headers have not changed.
    stream.learn()
    again = stream.dead()[len(first) :]
    origins = [dead_letters.origin(record.headers) for record in again]
    assert origins == [(record.topic, record.partition, record.offset) for record in back]
    assert [original_headers(record.headers) for record in again] == [tuple(record.headers) for record in back]
    by_value = {record.value: original_headers(record.headers) for record in first}
    for record in back:
        kept = by_value[record.value]
        added = tuple(record.headers)[len(kept) :]
        assert tuple(record.headers)[: len(kept)] == kept
        assert {name for name, _ in added} <= {"ce_id", "ce_source"}

    # Good now, for a branch that begins with them: each is learnt once, also of what main sends back once more.
    assert "sent 14" in stream.call("replay").output
    state = stream.learn("larger").state
    assert state["records_consumed"] == 2 * 14
    assert int(str(state["records_trained"])) + int(str(state["records_held_out"])) == len(LARGER)


@pytest.mark.kafka
def test_of_two_replays_the_older_one_says_in_one_line_who_took_over(
    stream: StreamWithDeadLetters, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploy import cli

    stream.learn()
    values = [record.value for record in stream.dead()]
    end = len(stream.read(topics.samples(stream.stream)))
    called: list[ReplayReport] = []

    def second(name: str) -> None:
        """In this process: the attempt that stands here meanwhile has ten seconds."""
        if name == "replay.sent":
            on_fault_point(None)  # the second one comes by here, too
            called.append(replay_dead_letters(stream.kafka, stream.stream))

    on_fault_point(second)
    arguments = ["palimpsest", "dead-letters", "replay", "--stream", stream.stream, "--settings", str(stream.file)]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    on_fault_point(None)
    assert ended.value.code == 4
    (newer,) = called
    assert sum(newer.sent.values()) == 14
    assert [record.value for record in stream.read(topics.samples(stream.stream))[end:]] == values


@pytest.mark.kafka
def test_what_is_not_there_is_said_in_one_line(stream: StreamWithDeadLetters) -> None:
    with pytest.raises(UserError, match="no learner has worked on stream"):
        stream.call("list")
    stream.learn()
    with pytest.raises(UserError, match="there is no reason 'ugly'; give --reason one of no_label"):
        stream.call("replay", "--reason", "ugly")
    with pytest.raises(UserError, match=r"there is no dead letter at offset 9999 of .*, which holds offsets 0 to"):
        stream.call("show", "--offset", 9999)
    with pytest.raises(UserError, match="'1:0' is not an offset"):
        stream.call("show", "--offset", "1:0")
    with pytest.raises(UserError, match="give another --value-to"):
        stream.call("show", "--offset", 0, "--value-to", stream.folder / "nowhere" / "file")


@pytest.mark.parametrize("text", [ANSI, "\r\n\t\0", "\x9b31m", "\u2028", "\ud800"])
def test_nothing_that_a_terminal_obeys_is_shown_raw(text: str) -> None:
    for shown in (printable(text), *preview(text.encode(errors="replace")), printable_bytes(b"\x1b\xff")):
        assert shown.isprintable()
        assert shown.isascii()


def test_a_preview_is_short_and_cuts_no_character() -> None:
    text, more = preview(("é" * 300).encode())
    assert text == "é" * 128
    assert more == "... 344 bytes more"
    assert preview(b"a" + "é".encode() * 200)[0] == "a" + "é" * 127
    assert preview(b"\xff\x00A") == [f"00000000  {'ff 00 41':<47}  ..A"]
    assert len(printable("a" * 10_000)) < 2_100
