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

from consumers import kafka_connection
from consumers.acls import refusal
from consumers.commit_log import (
    BrokerUnavailable,
    CommitLog,
    Committed,
    LearnerFenced,
    OutboxRefused,
    parse_metadata,
    transactional_id,
)
from consumers.kafka_client_logs import held_back
from consumers.kafka_nullable import sendable_headers, sendable_value
from consumers.kafka_settings import KafkaSettings
from consumers.kafka_transactions import (
    ATTEMPT_SECONDS,
    REFUSED,
    TRANSACTION_TIMEOUT_SECONDS,
    attempt_seconds,
    close_at_once,
    is_fenced,
    transactional_producer,
    within,
)
from model_store.fault_points import fault_point
from model_store.snapshot import OutboxMessage
from pipeline.record import Partition
from pipeline.user_error import UserError

log = logging.getLogger(__name__)

# After this the caller hears of it. It waits for as long as it likes by making the same call again, and hears a stop in
# between; in here nobody does.
_GIVE_UP_SECONDS = 10.0
_PAUSE_BETWEEN_ATTEMPTS_SECONDS = 0.5

Answer = TypeVar("Answer")


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
        """`partitions`: from `topics.check_samples_topic`; those that the topic gets later are committed just as well.

        Nothing is contacted before `start`.
        """
        self._settings = settings
        self._group = transactional_id(stream, branch)
        self._partitions = tuple(partitions)
        self._topics = frozenset(partition.topic for partition in partitions)
        self._give_up_seconds = give_up_seconds
        self._producer: KafkaProducer | None = None
        self._last: Committed | None = None  # what is committed, as far as we know
        self._own_sequence: int | None = None  # of the last commit() that went through
        self._in_doubt = False  # the last transaction may have gone through or not
        self._stop: threading.Event | None = None  # while `start` or `committed` runs: a commit is never given up

    @property
    def generation(self) -> int:
        assert self._last is not None, "start() first"
        return self._last.generation

    def committed(self) -> Committed | None:
        self._stop = kafka_connection.heard_stop()
        try:
            return self._read()
        finally:
            self._stop = None

    def start(self, *, known_generation: int = 0, stop: threading.Event | None = None) -> Committed | None:
        self._stop = stop or kafka_connection.heard_stop()
        try:
            with kafka_connection.hearing(self._stop):
                return self._start(known_generation)
        except kafka_connection.ConnectingStopped as error:
            raise BrokerUnavailable(str(error)) from error
        finally:
            self._stop = None

    def _start(self, known_generation: int) -> Committed | None:
        """Steps as in the contract."""
        # 1.
        self._open_producer()
        fault_point("start.fenced")
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
        fault_point("start.claimed")
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
            close_at_once(producer)

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
                    with kafka_connection.hearing(None):  # the last commit of all comes after the stop
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
            except (kafka_errors.KafkaError, OSError, BrokerUnavailable) as error:
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
            fault_point("transaction.begun")
            futures = [
                producer.send(
                    message.topic,
                    key=message.key,
                    value=sendable_value(message.value),
                    headers=sendable_headers(message.headers),
                )
                for message in outbox
            ]
            for future in futures:
                future.get()
            fault_point("transaction.sent")
            # 2.
            offsets = {
                TopicPartition(partition.topic, partition.number): OffsetAndMetadata(offset, committed.metadata, -1)
                for partition, offset in committed.offsets.items()
            }
            producer.send_offsets_to_transaction(offsets, ConsumerGroupMetadata(self._group))
            fault_point("transaction.offsets_added")
            # 3.
            producer.commit_transaction()
            fault_point("transaction.committed")

        try:
            size_bytes = sum(message.size_bytes for message in outbox)
            within(attempt_seconds(size_bytes), steps, self._stop)
        except kafka_errors.KafkaError as error:
            self._in_doubt = True
            if isinstance(error, REFUSED):
                raise OutboxRefused(
                    f"the brokers refuse a message of the outbox ({error}): raise max.message.bytes of "
                    f"{' or '.join(sorted({message.topic for message in outbox}))}"
                ) from error
            if isinstance(error, kafka_errors.AuthorizationError):
                raise UserError(self._refusal(error, outbox)) from error
            # A transaction that was open too long is aborted by the brokers, and its producer finds itself fenced
            # as by a newer learner; whether there is one is looked up in that case.
            if is_fenced(error) and time.monotonic() - began < 0.8 * TRANSACTION_TIMEOUT_SECONDS:
                raise self._fenced() from error
            raise

    def _refusal(self, error: kafka_errors.AuthorizationError, outbox: Sequence[OutboxMessage] = ()) -> str:
        """Which ACL is missing, as far as the brokers say it."""
        if isinstance(error, kafka_errors.TransactionalIdAuthorizationFailedError):
            return refusal("transactional-id", self._group, "Write")
        if isinstance(error, kafka_errors.GroupAuthorizationFailedError):
            return refusal("group", self._group, "Read")
        told = sorted({message.topic for message in outbox})
        learnt = sorted(self._topics)
        if isinstance(error, kafka_errors.TopicAuthorizationFailedError) and not told:
            return refusal("topic", learnt[0], "Read")
        return (
            f"the brokers do not allow this user what {self._group} has to do ({error}): Read on {', '.join(learnt)}"
            f"{' and Write on ' + ', '.join(told) if told else ''}; have the ACLs added that `palimpsest check` lists"
        )

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
            producer = transactional_producer(self._settings, self._group)
        except UserError as error:
            if starting:
                raise
            raise BrokerUnavailable(str(error)) from error
        self._producer = producer
        try:
            # The client's own limit is a minute, in which it hears no stop. A start may need as long: the brokers bring
            # the transaction of the one before to an end.
            limit_seconds = TRANSACTION_TIMEOUT_SECONDS if starting else ATTEMPT_SECONDS
            with held_back():  # what the client complains of here is what is raised below
                within(limit_seconds, producer.init_transactions, self._stop)
        except TimeoutError as error:
            raise BrokerUnavailable(f"the brokers did not start transactions for {self._group} ({error})") from error
        except kafka_errors.AuthorizationError as error:
            raise UserError(self._refusal(error)) from error
        except kafka_errors.KafkaError as error:
            if is_fenced(error):
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
                if entry.offset >= 0 and partition.topic in self._topics:
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
        if self._stop is None:
            return self._asking_deaf(ask)
        stop, answers = self._stop, list[Answer]()

        def run() -> None:
            with kafka_connection.hearing(stop):
                answers.append(self._asking_deaf(ask))

        try:
            within(None, run, stop)
        except kafka_connection.ConnectingStopped as error:
            raise BrokerUnavailable(str(error)) from error
        return answers[0]

    def _asking_deaf(self, ask: Callable[[Any], Answer]) -> Answer:
        patience_seconds = _GIVE_UP_SECONDS if self._last else TRANSACTION_TIMEOUT_SECONDS / 2
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
            raise UserError(self._refusal(error)) from error
        except UserError as error:
            if self._last is None:
                raise
            raise BrokerUnavailable(str(error)) from error
