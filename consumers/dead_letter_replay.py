"""Dead letters sent back to where they came from, each once: the learner takes them as ordinary new records.

1. Fence an older replay. Find out how far each reason was replayed before, and where the dead letters end now: what the
   learner puts there meanwhile, maybe the very records that are sent, waits for the next replay.
2. Read on from there. Restore each record: key, value and headers as they were at first, with the id that the learner
   knows it by. A value that was left out is fetched from where it stood, if it still lies there.
3. Every some hundred records: one transaction of the records and the new positions. A stop comes between two of them.
4. At the end, an event says how far it came, for the time when the brokers have forgotten the positions.

Whatever is killed or raised leaves whole transactions: the next replay goes on where the last one ended. After a kill,
start it before the brokers forget its group (`offsets.retention.minutes`, a week): 4 has not told of it then. What it
sends again after that the learner drops as repeats, as far back as it remembers ids.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import StrEnum

from consumers import kafka_connection, topics
from consumers.commit_log import BrokerUnavailable
from consumers.dead_letter_reader import DeadLetter, identified, parse_dead_letter
from consumers.kafka_record_source import KafkaRecordSource
from consumers.kafka_settings import KafkaSettings
from consumers.record_source import RecordSource, SourceUnavailable, read_records
from consumers.replay_position import ReplayPosition
from consumers.replay_transactions import ReplayTransactions, replay_group
from consumers.topics import topic_partitions
from pipeline.record import Partition, Record
from pipeline.sample import DeadLetterReason
from pipeline.user_error import UserError

# Of one transaction: few enough that the brokers take it within seconds, and that a kill costs little.
_BATCH_RECORDS = 500
_BATCH_BYTES = 8 * 1024 * 1024


class Skipped(StrEnum):
    """Why a dead letter was not sent back."""

    FOREIGN = "foreign"  # somebody else wrote it: it does not say where it stood, or not as we do
    ELSEWHERE = "elsewhere"  # it stood in a topic or partition that this stream's samples have not
    GONE = "gone"  # its value was left out, and no longer lies where it stood


@dataclass(slots=True, kw_only=True)
class ReplayReport:
    """What one replay did, or would do."""

    sent: Counter[str] = field(default_factory=Counter)  # by reason
    skipped: Counter[Skipped] = field(default_factory=Counter)
    positions: dict[Partition, ReplayPosition] = field(default_factory=dict)
    stopped_by: str = "end"  # "limit", "signal"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLettersTopic:
    """The topic of a stream's dead letters, as it is now."""

    topic_id: str
    partitions: tuple[Partition, ...]


def dead_letters_topic(settings: KafkaSettings, stream: str) -> DeadLettersTopic:
    """What the brokers say of it. Raises `UserError` where there is none."""
    topic = topics.dead_letters(stream)
    topic_id, partitions = topic_partitions(settings, topic)
    if not partitions:
        raise UserError(
            f"there is no topic {topic}: no learner has worked on stream {stream!r}; "
            f"check --stream, or start one with `palimpsest learn --stream {stream}`"
        )
    return DeadLettersTopic(topic_id=topic_id, partitions=partitions)


def open_transactions(settings: KafkaSettings, stream: str, topic: DeadLettersTopic) -> ReplayTransactions:
    """What knows how far these dead letters were replayed; contacts nobody yet."""
    return ReplayTransactions(settings, stream, topic.partitions, topic.topic_id)


def replay_dead_letters(
    settings: KafkaSettings,
    stream: str,
    *,
    reasons: Collection[DeadLetterReason] = (),
    limit: int | None = None,
    dry_run: bool = False,
    stop: threading.Event | None = None,
    progress: Callable[[str, int, int], None] = lambda _stage, _done, _total: None,
    warned: Callable[[str], None] = lambda _message: None,
    batch_records: int = _BATCH_RECORDS,
) -> ReplayReport:
    """Replay what has one of these reasons (none: every dead letter) and was not replayed before, at most `limit`.

    `dry_run`: count only; fences nobody and sends nothing. `stop` also ends the waits for brokers; where nothing was
    found out yet the report has no positions. `progress` hears of offsets passed, `warned` of each record whose value
    is gone. Raises `UserError`, `ReplayFenced`, `BrokerUnavailable`, `SourceUnavailable`, `LogTruncated`.
    """
    with ExitStack() as stack:
        # 1.
        try:
            with kafka_connection.hearing(stop):
                begun = _begin(stack, settings, stream, dry_run=dry_run, stop=stop)
        except (BrokerUnavailable, SourceUnavailable):
            if stop is None or not stop.is_set():
                raise
            return ReplayReport(stopped_by="signal")  # it was told to end, and so it did; no brokers are to blame
        transactions, begin, end, partitions = begun.transactions, begun.begin, begun.end, begun.samples
        positions = {partition: begun.before.get(partition, ReplayPosition(begin[partition])) for partition in end}
        first = {partition: max(begin[partition], at.begin(reasons)) for partition, at in positions.items()}
        total, done = sum(end.values()) - sum(first.values()), 0
        report = ReplayReport(positions=positions)
        original = _Originals(stack, settings, partitions)
        batch: list[Record] = []
        batch_bytes = 0
        passed = dict(first)

        def send() -> None:
            # 3.
            advanced = {p: at.advanced(reasons, passed[p]) for p, at in report.positions.items()}
            if not dry_run and (batch or advanced != report.positions):
                transactions.send(batch, advanced)
            report.positions = advanced
            batch.clear()
            progress("replay", done, total)

        # 2.
        try:
            with kafka_connection.hearing(stop):
                for record in read_records(begun.source, first, end, stop):
                    if stop is not None and stop.is_set():
                        report.stopped_by = "signal"
                        break
                    if limit is not None and report.sent.total() >= limit:
                        report.stopped_by = "limit"
                        break
                    found = _restored(record, reasons, positions[record.log_partition], partitions, original)
                    if isinstance(found, Skipped):
                        report.skipped[found] += 1
                        if found is Skipped.GONE:
                            warned(
                                f"dead letter {record.offset}: its value was left out, and lies no longer where it "
                                "stood"
                            )
                    elif found is not None:
                        reason, restored = found
                        report.sent[reason] += 1
                        batch.append(restored)
                        batch_bytes += restored.size_bytes
                    done += record.offset + 1 - passed[record.log_partition]
                    passed[record.log_partition] = record.offset + 1
                    if len(batch) >= batch_records or batch_bytes >= _BATCH_BYTES:
                        send()
                        batch_bytes = 0
                else:
                    passed, done = dict(end), total  # past markers at the end, too
        except SourceUnavailable:
            if stop is None or not stop.is_set():
                raise
            report.stopped_by = "signal"
        send()
        # 4.
        if not dry_run:
            transactions.tell(
                report.positions,
                sent=report.sent,
                skipped={str(why): count for why, count in report.skipped.items()},
            )
        return report


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begun:
    """What step 1 finds out."""

    transactions: ReplayTransactions
    source: RecordSource  # of the dead letters, as are the offsets
    begin: Mapping[Partition, int]
    end: Mapping[Partition, int]
    before: Mapping[Partition, ReplayPosition]
    samples: Sequence[Partition]


def _begin(
    stack: ExitStack, settings: KafkaSettings, stream: str, *, dry_run: bool, stop: threading.Event | None
) -> _Begun:
    """Step 1; what has to be closed goes onto the stack."""
    topic = dead_letters_topic(settings, stream)
    samples = topics.check_samples_topic(settings, stream)
    transactions = stack.enter_context(open_transactions(settings, stream, topic))
    if not dry_run:
        topics.ensure_report_topics(settings, stream)
        transactions.begin(stop)
    source = stack.enter_context(KafkaRecordSource(settings, topic.partitions))
    begin, end = source.beginning_offsets(), source.end_offsets()
    return _Begun(
        transactions=transactions,
        source=source,
        begin=begin,
        end=end,
        before=_checked(transactions.positions(stop), end, stream),
        samples=samples.partitions,
    )


def _checked(
    positions: Mapping[Partition, ReplayPosition], end: Mapping[Partition, int], stream: str
) -> Mapping[Partition, ReplayPosition]:
    for partition, position in positions.items():
        furthest = max(position.offset, *position.ahead.values(), 0)
        if furthest > end[partition]:
            raise UserError(
                f"dead letters were replayed up to offset {furthest}, but {partition} ends at {end[partition]}: it was "
                "made anew; to replay it from its beginning, delete the old position: "
                f"`kafka-consumer-groups.sh --bootstrap-server HOST:PORT --delete --group {replay_group(stream)}`"
            )
    return positions


def _restored(
    record: Record,
    reasons: Collection[DeadLetterReason],
    position: ReplayPosition,
    partitions: Sequence[Partition],
    original: _Originals,
) -> tuple[str, Record] | Skipped | None:
    """(reason, the record to be sent); or why it cannot be; None: it is not meant, or was replayed before."""
    letter = parse_dead_letter(record)
    if letter is None:
        return None if reasons or record.offset < position.offset else Skipped.FOREIGN
    if (reasons and letter.reason not in reasons) or record.offset < position.of(letter.reason):
        return None
    if letter.origin not in partitions:
        return Skipped.ELSEWHERE
    whole = letter.whole_record() if letter.is_whole else original.whole_record(letter)
    if whole is None:
        return Skipped.GONE
    return letter.reason, whole._replace(headers=identified(whole))


class _Originals:
    """Records whose values were left out of their dead letters, read where they stood. Opened when first needed."""

    def __init__(self, stack: ExitStack, settings: KafkaSettings, partitions: Sequence[Partition]) -> None:
        self._stack = stack
        self._settings = settings
        self._partitions = partitions
        self._source: RecordSource | None = None

    def whole_record(self, letter: DeadLetter) -> Record | None:
        if self._source is None:
            self._source = self._stack.enter_context(KafkaRecordSource(self._settings, self._partitions))
        found = self._source.read_one(letter.origin, letter.origin_offset)
        return letter.whole_record(found) if found is not None and letter.is_of(found) else None


def fetch_whole(settings: KafkaSettings, stream: str, letter: DeadLetter) -> Record | None:
    """The record of a dead letter as it was; None where what was left out lies no longer where it stood."""
    if letter.is_whole:
        return letter.whole_record()
    samples = topics.check_samples_topic(settings, stream)
    if letter.origin not in samples.partitions:
        return None
    with ExitStack() as stack:
        return _Originals(stack, settings, samples.partitions).whole_record(letter)
