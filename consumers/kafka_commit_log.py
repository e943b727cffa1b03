"""The commit log on Kafka: a transactional producer whose id is the learner's name, and the offsets of its group."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from kafka import ConsumerGroupMetadata, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import OffsetSpec
from kafka.serializer import Serializer

from consumers import kafka_connection
from consumers.commit_log import (
    BrokerUnavailable,
    CommitLog,
    Committed,
    LearnerFenced,
    OutboxRefused,
    parse_metadata,
    transactional_id,
)
from consumers.kafka_settings import KafkaSettings
from model_store.snapshot import OutboxMessage
from pipeline.record import Partition
from pipeline.user_error import UserError

log = logging.getLogger(__name__)

# The header that lists which of the message's headers were null (their positions, comma-separated). kafka-python 3.0.12
# cannot send a null header, so they are sent empty; a replay makes them null again.
NULL_HEADERS = "palimpsest-null-headers"

# A transaction is open for as long as it takes to send the outbox, milliseconds as a rule. The brokers abort one that
# a killed learner left open after this; until then it holds back whoever reads dead letters and events.
_TRANSACTION_TIMEOUT_SECONDS = 60.0
# An attempt that takes longer than this, and than a slow network needs for the outbox, is given up and looked into:
# kafka-python 3.0.12 can wait for ever after a broker came back (its next request is lost with the old connection).
_ATTEMPT_SECONDS = 10.0
_SLOWEST_BYTES_PER_SECOND = 2_000_000
# After this the caller hears of it. It waits for as long as it likes by making the same call again, and hears a stop in
# between; in here nobody does.
_GIVE_UP_SECONDS = 10.0
# The sender sleeps this long on every transactional retry, and each transaction that follows another at once meets one
# (the brokers are still writing the markers of the one before). The default of 100 ms allows 6 commits a second.
_RETRY_BACKOFF_MS = 5
_PAUSE_BETWEEN_ATTEMPTS_SECONDS = 0.5
# The brokers' socket.request.max.bytes is 100 MiB by default.
_MAX_REQUEST_BYTES = 100 * 1024 * 1024 - 64 * 1024

_FENCED = (kafka_errors.ProducerFencedError, kafka_errors.InvalidProducerEpochError)
_REFUSED = (
    kafka_errors.MessageSizeTooLargeError,
    kafka_errors.RecordListTooLargeError,
    kafka_errors.InvalidRecordError,
    kafka_errors.InvalidTimestampError,
    kafka_errors.InvalidTopicError,
)

Answer = TypeVar("Answer")


class _Nullable(Serializer):  # type: ignore[misc]
    """Lets a message have neither key nor value, which `KafkaProducer.send` refuses and Kafka does not."""

    NULL = object()

    def serialize(self, topic: str, headers: Any, data: Any) -> bytes | None:
        return None if data is self.NULL else data


class KafkaCommitLog(CommitLog):
    """Transactions that end in doubt (a broker went away in the midst) are looked up before anything is told again."""

    def __init__(
        self,
        settings: KafkaSettings,
        stream: str,
        branch: str,
        partitions: Sequence[Partition],
        *,
        give_up_seconds: float = _GIVE_UP_SECONDS,
    ) -> None:
        """`partitions`: from `topics.check_samples_topic`. Nothing is contacted before `start`."""
        self._settings = settings
        self._group = transactional_id(stream, branch)
        self._partitions = tuple(partitions)
        self._give_up_seconds = give_up_seconds
        self._producer: KafkaProducer | None = None
        self._last: Committed | None = None  # what is committed, as far as we know
        self._own_sequence: int | None = None  # of the last commit() that went through
        self._in_doubt = False  # the last transaction may have gone through or not

    @property
    def generation(self) -> int:
        assert self._last is not None, "start() first"
        return self._last.generation

    def committed(self) -> Committed | None:
        return self._read()

    def start(self, *, known_generation: int = 0) -> Committed | None:
        """Steps as in the contract."""
        # 1.
        self._open_producer()
        # 2.
        before = self._read()
        beginnings = self._beginnings()
        # 3.
        claim = Committed(
            offsets={**beginnings, **(before.offsets if before else {})},
            generation=max(before.generation if before else 0, known_generation) + 1,
            sequence=before.sequence if before else 0,
        )
        try:
            self._transact(claim, ())
        except (kafka_errors.KafkaError, TimeoutError) as error:
            raise BrokerUnavailable(f"the brokers did not take the claim of {self._group} ({error})") from error
        self._last = claim
        return before

    def commit(self, offsets: Mapping[Partition, int], sequence: int, outbox: Sequence[OutboxMessage]) -> None:
        assert self._last is not None, "start() first"
        if sequence == self._own_sequence:
            return
        assert sequence > self._last.sequence, f"sequence {sequence} is not above {self._last.sequence}"
        self._carry_through(Committed(offsets=dict(offsets), generation=self.generation, sequence=sequence), outbox)
        self._own_sequence = sequence

    def heartbeat(self) -> None:
        assert self._last is not None, "start() first"
        self._carry_through(None, ())

    def close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            _close_at_once(producer)

    # How

    def _carry_through(self, wanted: Committed | None, outbox: Sequence[OutboxMessage]) -> None:
        """Make one transaction, however often it takes. None: of what is committed, whatever that turns out to be.

        1. If the transaction before is in doubt, find out what became of it; if it is this very one, all is done.
        2. Try.
        3. Where the brokers do not answer, the outcome is in doubt: pause and go back to 1, until it is time to end.
        """
        deadline = time.monotonic() + self._give_up_seconds
        while True:
            try:
                # 1.
                if self._in_doubt:
                    self._recover()
                assert self._last is not None
                if wanted is not None and wanted.sequence <= self._last.sequence:
                    return
                # 2.
                committed = wanted or self._last
                self._transact(committed, outbox)
                self._last = committed
                return
            # 3.
            except (kafka_errors.KafkaError, TimeoutError, BrokerUnavailable) as error:
                self._in_doubt = True
                if time.monotonic() > deadline:
                    raise BrokerUnavailable(
                        f"the brokers did not take a commit within {self._give_up_seconds:.0f} s ({error})"
                    ) from error
                log.warning("a commit is in doubt, trying again: %s", error)
                time.sleep(_PAUSE_BETWEEN_ATTEMPTS_SECONDS)

    def _transact(self, committed: Committed, outbox: Sequence[OutboxMessage]) -> None:
        """One transaction.

        1. Open it and send the outbox; wait until the brokers have all of it. Without the wait a batch could fail after
           step 2, and the client would restart the transaction on its own and lose what was in it before.
        2. Add the offsets.
        3. Commit.
        """
        producer = self._producer
        assert producer is not None, "start() first"
        began = time.monotonic()

        def steps() -> None:
            # 1.
            producer.begin_transaction()
            futures = [
                producer.send(
                    message.topic,
                    key=message.key,
                    value=_Nullable.NULL if message.value is None else message.value,
                    headers=_sendable_headers(message.headers),
                )
                for message in outbox
            ]
            for future in futures:
                future.get()
            # 2.
            offsets = {
                TopicPartition(partition.topic, partition.number): OffsetAndMetadata(offset, committed.metadata, -1)
                for partition, offset in committed.offsets.items()
            }
            producer.send_offsets_to_transaction(offsets, ConsumerGroupMetadata(self._group))
            # 3.
            producer.commit_transaction()

        try:
            size_bytes = sum(len(message.value or b"") for message in outbox)
            limit_seconds = _ATTEMPT_SECONDS + size_bytes / _SLOWEST_BYTES_PER_SECOND
            _within(min(limit_seconds, _TRANSACTION_TIMEOUT_SECONDS), steps)
        except kafka_errors.KafkaError as error:
            self._in_doubt = True
            if isinstance(error, _REFUSED):
                raise OutboxRefused(
                    f"the brokers refuse a message of the outbox ({error}): raise max.message.bytes of "
                    f"{' or '.join(sorted({message.topic for message in outbox}))}"
                ) from error
            if isinstance(error, kafka_errors.AuthorizationError):
                raise UserError(
                    f"this user may not write what {self._group} has to ({error}); ask for the ACLs on the "
                    "transactional id, the group and the topics"
                ) from error
            # A transaction that was open too long is aborted by the brokers, and its producer finds itself fenced
            # as by a newer learner; whether there is one is looked up in that case.
            if _is_fenced(error) and time.monotonic() - began < 0.8 * _TRANSACTION_TIMEOUT_SECONDS:
                raise self._fenced() from error
            raise

    def _recover(self) -> None:
        """Find out what became of the last transaction, and make the producer usable again.

        1. Let go of the old producer, whose state nobody knows.
        2. If a newer learner has claimed, end here: step 3 would fence it.
        3. Fence the old producer, which brings its transaction to an end.
        4. Read what is committed now; a newer learner may have claimed between 2 and 3, and then both end.
        """
        # 1.
        self.close()
        # 2.
        self._check_generation(self._read())
        # 3.
        self._open_producer()
        # 4.
        committed = self._read()
        self._check_generation(committed)
        assert committed is not None
        assert self._last is not None
        if committed.sequence > self._last.sequence:
            self._own_sequence = committed.sequence  # it had gone through
        self._last = committed
        self._in_doubt = False

    def _check_generation(self, committed: Committed | None) -> None:
        if committed is None or committed.generation != self.generation:
            raise self._fenced()

    def _fenced(self) -> LearnerFenced:
        return LearnerFenced(f"a newer learner has taken over {self._group}; this one ends")

    def _open_producer(self) -> None:
        self.close()
        starting = self._last is None
        try:
            producer = kafka_connection.producer(
                self._settings,
                transactional_id=self._group,
                transaction_timeout_ms=int(_TRANSACTION_TIMEOUT_SECONDS * 1000),
                retry_backoff_ms=_RETRY_BACKOFF_MS,
                max_request_size=_MAX_REQUEST_BYTES,
                compression_type="zstd",
                value_serializer=_Nullable(),
            )
        except UserError as error:
            if starting:
                raise
            raise BrokerUnavailable(str(error)) from error
        self._producer = producer
        try:
            if starting:
                producer.init_transactions()
            else:  # it may wait for a minute, in which the caller hears no stop
                _within(_ATTEMPT_SECONDS, producer.init_transactions)
        except TimeoutError as error:
            raise BrokerUnavailable(f"the brokers did not start transactions for {self._group} ({error})") from error
        except kafka_errors.AuthorizationError as error:
            raise UserError(
                f"this user may not use transactional id {self._group} ({error}); ask for the ACLs WRITE and DESCRIBE"
            ) from error
        except kafka_errors.KafkaError as error:
            if _is_fenced(error):
                raise self._fenced() from error
            raise BrokerUnavailable(f"the brokers did not start transactions for {self._group} ({error})") from error

    def _read(self) -> Committed | None:
        """What the group has committed. None where it has nothing, or nothing of ours."""

        def ask(admin: Any) -> Committed | None:
            try:
                committed = admin.list_group_offsets({self._group: None})[self._group]
            except kafka_errors.GroupIdNotFoundError:
                return None
            offsets = {}
            newest = (0, 0)
            for theirs, entry in committed.items():
                partition = Partition(theirs.topic, theirs.partition)
                if entry.offset >= 0 and partition in self._partitions:
                    offsets[partition] = entry.offset
                    # Another tool may have set the offsets by hand; then only the offsets are known.
                    newest = max(newest, parse_metadata(entry.metadata) or (0, 0))
            if not offsets:
                return None
            return Committed(offsets=offsets, generation=newest[0], sequence=newest[1])

        return self._asking(ask)

    def _beginnings(self) -> dict[Partition, int]:
        wanted = {TopicPartition(p.topic, p.number): OffsetSpec.EARLIEST for p in self._partitions}

        def ask(admin: Any) -> dict[Partition, int]:
            return {
                Partition(theirs.topic, theirs.partition): found.offset
                for theirs, found in admin.list_partition_offsets(wanted).items()
            }

        return self._asking(ask)

    def _asking(self, ask: Callable[[Any], Answer]) -> Answer:
        """An answer of the brokers, asked again while they settle: a new cluster first makes its internal topics."""
        patience_seconds = _GIVE_UP_SECONDS if self._last else _TRANSACTION_TIMEOUT_SECONDS / 2
        deadline = time.monotonic() + self._settings.connect_timeout_seconds + patience_seconds
        try:
            with kafka_connection.admin(self._settings) as admin:
                while True:
                    try:
                        return ask(admin)
                    except kafka_errors.RetriableError as error:
                        if time.monotonic() > deadline:
                            raise BrokerUnavailable(f"the brokers do not answer ({error})") from error
                        time.sleep(_PAUSE_BETWEEN_ATTEMPTS_SECONDS / 5)
        except kafka_errors.AuthorizationError as error:
            raise UserError(f"this user may not read group {self._group} ({error}); ask for the ACL") from error
        except UserError as error:
            if self._last is None:
                raise
            raise BrokerUnavailable(str(error)) from error


def _sendable_headers(headers: Sequence[tuple[str, bytes | None]]) -> list[tuple[str, bytes]]:
    null = [str(position) for position, (_, value) in enumerate(headers) if value is None]
    sendable = [(name, value or b"") for name, value in headers]
    return [*sendable, (NULL_HEADERS, ",".join(null).encode())] if null else sendable


def _is_fenced(error: kafka_errors.KafkaError) -> bool:
    # Once the client knows, every further call fails with a plain KafkaError that carries or quotes the reason.
    reasons = (error, *error.args)
    return any(isinstance(reason, _FENCED) or "ProducerFenced" in str(reason) for reason in reasons)


def _within(timeout_seconds: float, steps: Callable[[], None]) -> None:
    """Run `steps`, whose calls wait for ever where no broker answers. Raises `TimeoutError`.

    The thread that is left behind then is woken by nobody; it is a daemon, and its producer is never used again.
    """
    problems: list[BaseException] = []

    def run() -> None:
        try:
            steps()
        except BaseException as problem:
            problems.append(problem)

    thread = threading.Thread(target=run, name="palimpsest-transaction", daemon=True)
    thread.start()
    thread.join(timeout_seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer of the brokers within {timeout_seconds:.0f} s")
    if problems:
        raise problems[0]


def _close_at_once(producer: KafkaProducer) -> None:
    """Whatever the producer still had to send is not to be sent: its transaction is aborted by whoever comes next."""
    try:
        producer.close(timeout=0)
    except kafka_errors.KafkaTimeoutError:
        producer._sender.force_close()
