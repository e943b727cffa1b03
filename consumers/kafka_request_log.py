"""Requests and answers on Kafka: an ordinary consumer group, and one transactional producer an instance.

What makes it exactly once (KIP-447):
- The offsets go into the answers' transaction with the group's generation as of the poll: one whose partitions went to
  another member meanwhile is refused, and aborts.
- Who gets a partition waits for transactions on its offsets that are still open (`require_stable`).
- A rebalance may set a position back to before what was just answered: what this member has committed itself it never
  answers again.
- An instance has one transactional id for good: started again after a kill it ends at once what was left open, and it
  comes back to its place in the group without a rebalance (static membership).
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kafka import ConsumerGroupMetadata, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka import errors as kafka_errors

from consumers import kafka_connection, kafka_python_mending
from consumers.acls import refusal
from consumers.commit_log import BrokerUnavailable
from consumers.kafka_client_logs import held_back
from consumers.kafka_connection import BrokersUnreachable
from consumers.kafka_nullable import sendable_headers, sendable_value
from consumers.kafka_settings import KafkaSettings
from consumers.kafka_transactions import (
    REFUSED,
    close_at_once,
    is_fenced,
    transactional_producer,
    within,
)
from consumers.record_source import LogTruncated, RecordUnreadable, SourceUnavailable
from consumers.request_log import PredictorFenced, RequestLog
from consumers.topics import check_stream_name
from model_store.fault_points import fault_point
from model_store.snapshot import OutboxMessage
from pipeline.evaluation.shadow_scores import Role
from pipeline.record import Partition, Record
from pipeline.user_error import UserError

log = logging.getLogger(__name__)

# Whoever reads the answers waits for open transactions: one of a predictor that was killed and does not come back is
# ended by the brokers after this. A turn takes far less.
TRANSACTION_TIMEOUT_SECONDS = 15.0
_ATTEMPT_SECONDS = 10.0
_START_SECONDS = 2 * TRANSACTION_TIMEOUT_SECONDS  # what a killed process left open comes to its end first
# A killed member's partitions go to the others after this.
_SESSION_SECONDS = 10.0
_HEARTBEAT_SECONDS = 3.0
# How long the brokers hold back an answer while there is nothing to send; a rebalance waits for no longer.
_FETCH_WAIT_MS = 250
_OFFSETS_TIMEOUT_MS = 5_000
# The answers of a turn wait for the last of them, and then go at once: one request to each broker, not dozens.
_LINGER_MS = 1_000
_PAUSE_SECONDS = 0.5
# After these nobody knows what became of a transaction.
_DOUBT = (kafka_errors.KafkaError, BrokerUnavailable, SourceUnavailable, BrokersUnreachable)
# Kafka takes these in group.instance.id.
_INSTANCE = re.compile(r"[A-Za-z0-9._-]{1,100}")


def predictor_group(stream: str, role: Role) -> str:
    """The consumer group of the predictors in a role; the beginning of their transactional ids too."""
    return f"palimpsest.{check_stream_name(stream)}.predictor.{role}"


def check_instance_name(instance: str) -> str:
    """The name itself. `UserError` where Kafka would not take it."""
    if not _INSTANCE.fullmatch(instance) or instance in (".", ".."):
        raise UserError(
            f"instance name {instance!r} is not 1 to 100 letters, digits, '.', '_' and '-'; choose another --instance"
        )
    return instance


class KafkaRequestLog(RequestLog):
    """See on top."""

    def __init__(
        self, settings: KafkaSettings, *, stream: str, role: Role, instance: str, topic: str, begins_at_end: bool
    ) -> None:
        """`begins_at_end`: where the group never committed anything for a partition, only requests from now on are
        answered, by the log's time. Nothing is contacted before `start`."""
        self._settings = settings
        self._group = predictor_group(stream, role)
        self._instance = check_instance_name(instance)
        self._id = f"{self._group}.{instance}"
        self._topic = topic
        self._begins_at_ms = int(time.time() * 1000) if begins_at_end else None
        self._stop: threading.Event | None = None
        self._producer: KafkaProducer | None = None
        self._consumer: Any = None
        self._gives_ours = False
        self._polled: dict[TopicPartition, int] = {}  # past the last one
        self._as_member: Any = None  # the group's generation as of the last poll
        self._committed: dict[TopicPartition, int] = {}  # by this member
        self._seems_replaced = False  # at the poll before
        self._away_since: float | None = None

    def start(self, stop: threading.Event | None = None) -> None:
        """End what a killed process of this instance left open, and join the group.

        Raises `UserError` where no broker lets us in, `PredictorFenced`, `BrokerUnavailable`.
        """
        self._stop = stop
        with kafka_connection.hearing(stop):
            self._open_producer(_START_SECONDS)
            self._consumer = kafka_connection.consumer(
                self._settings,
                group_id=self._group,
                group_instance_id=self._instance,
                session_timeout_ms=int(_SESSION_SECONDS * 1000),
                heartbeat_interval_ms=int(_HEARTBEAT_SECONDS * 1000),
                fetch_max_wait_ms=_FETCH_WAIT_MS,
            )
        self._gives_ours = kafka_python_mending.unpack_into_records(self._consumer)
        self._consumer.subscribe([self._topic])

    # -- requests --------------------------------------------------------------------------------------------------

    def poll(self, max_records: int, timeout_seconds: float) -> list[Record]:
        """1. Poll. 2. As which member of the group? 3. Leave out what this member has answered before."""
        self._polled = {}
        # 1.
        try:
            polled = self._consumer.poll(timeout_ms=int(timeout_seconds * 1000), max_records=max_records)
        except kafka_errors.NoOffsetForPartitionError:
            self._trying(self._place)
            return []
        except kafka_errors.OffsetOutOfRangeError as out_of_range:
            positions: Any = out_of_range.args[0] if out_of_range.args else {}
            self._trying(lambda: self._pass_over(dict(positions)))
            return []
        except kafka_errors.LogTruncationError as error:
            raise LogTruncated(self._lost_tail()) from error
        except kafka_errors.FencedInstanceIdError as error:
            raise self._fenced() from error
        except kafka_errors.AuthorizationError as error:
            raise UserError(self._refusal(error)) from error
        except kafka_errors.UnsupportedCodecError as error:
            raise UserError(
                f"requests are compressed in a way that cannot be read here ({error}); "
                "`pip install python-snappy` for snappy, or write them with lz4, zstd or gzip"
            ) from error
        except kafka_errors.CorruptRecordError as error:
            raise RecordUnreadable(
                f"a request in {self._topic} cannot be read ({error}); delete the log up to it with "
                "kafka-delete-records.sh, or set the offsets of the group past it with kafka-consumer-groups.sh"
            ) from error
        except kafka_errors.RetriableError as error:
            self._away(error)
            return []
        except kafka_errors.SaslAuthenticationFailedError as error:
            raise UserError(
                f"the brokers do not know this user any more ({error}); check the password or token, and start it anew"
            ) from error
        except kafka_errors.BrokerResponseError as error:
            raise UserError(
                f"the brokers refuse this member of {self._group} ({type(error).__name__}: {error}); look at the group "
                "with kafka-consumer-groups.sh --describe, and at the brokers' group.* settings"
            ) from error
        replaced = kafka_python_mending.was_replaced_in_group(self._consumer)
        if replaced and self._seems_replaced:
            raise self._fenced()
        self._seems_replaced = replaced
        # 2.
        self._as_member = self._consumer.group_metadata()
        ours = self._consumer.assignment()
        # 3.
        requests: list[Record] = []
        for theirs, records in polled.items():
            wanted = [
                record if self._gives_ours else kafka_python_mending.our_record(record)
                for record in records
                if record.offset >= self._committed.get(theirs, 0)
            ]
            if wanted and theirs in ours:
                self._polled[theirs] = wanted[-1].offset + 1
                requests += wanted
        if polled:
            self._away_since = None
        return requests

    def answer(self, answers: Sequence[OutboxMessage]) -> bool:
        """1. One transaction. 2. Where it did not go through: abort it, and go back to what is committed."""
        polled, self._polled = self._polled, {}
        if not polled:
            return True
        began = time.monotonic()
        try:
            # 1.
            if self._producer is None:
                with kafka_connection.hearing(self._stop):
                    self._open_producer(_ATTEMPT_SECONDS)
            within(_ATTEMPT_SECONDS, lambda: self._transact(answers, polled))
        except (*_DOUBT, TimeoutError) as error:
            # 2.
            if not self._give_up(error, answers, polled, began):
                return False
        self._committed |= polled
        self._away_since = None
        return True

    def lag_records(self) -> dict[Partition, int]:
        found: dict[Partition, int] = {}
        for theirs in self._consumer.assignment():
            with contextlib.suppress(kafka_errors.KafkaError):  # a rebalance has just taken it
                end = self._consumer.highwater(theirs)  # None: nothing was fetched of it yet
                position = self._consumer.position(theirs, timeout_ms=0)
                if end is not None and position is not None:
                    found[Partition(theirs.topic, theirs.partition)] = max(0, end - position)
        return found

    def is_at_end(self) -> bool:
        """The brokers are asked: what the client remembers of a partition's end it forgets when that goes and comes
        back, and it says nothing while they are away."""
        consumer = self._consumer
        try:
            if not kafka_python_mending.has_joined_group(consumer) or not consumer.partitions_for_topic(self._topic):
                return False
            ours = list(consumer.assignment())
            ends = consumer.end_offsets(ours, timeout_ms=_OFFSETS_TIMEOUT_MS) if ours else {}
            positions = {theirs: consumer.position(theirs, timeout_ms=0) for theirs in ours}
        except kafka_errors.KafkaError:
            return False
        return all(position is not None and position >= ends[theirs] for theirs, position in positions.items())

    def close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            close_at_once(producer)
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            with held_back():
                consumer.close(autocommit=False)

    # -- how -------------------------------------------------------------------------------------------------------

    def _transact(self, answers: Sequence[OutboxMessage], polled: Mapping[TopicPartition, int]) -> None:
        """1. Send the answers, and wait until the brokers have all of them: a batch that fails later would let the
        client restart the transaction without the rest. 2. Add the offsets. 3. Commit."""
        producer = self._producer
        assert producer is not None
        # 1.
        producer.begin_transaction()
        fault_point("predict.begun")
        futures = [
            producer.send(
                answer.topic,
                key=answer.key,
                value=sendable_value(answer.value),
                headers=sendable_headers(answer.headers),
            )
            for answer in answers
        ]
        producer.flush()
        for future in futures:
            future.get()
        fault_point("predict.sent")
        # 2.
        offsets = {theirs: OffsetAndMetadata(end, "", -1) for theirs, end in polled.items()}
        producer.send_offsets_to_transaction(offsets, self._member())
        fault_point("predict.offsets_added")
        # 3.
        producer.commit_transaction()
        fault_point("predict.committed")

    def _member(self) -> ConsumerGroupMetadata:
        """As whom the requests were polled. Out of the group nothing may be committed for it."""
        member = self._as_member
        if member is None or member.generation_id < 0 or not member.member_id:
            raise kafka_errors.CommitFailedError("the group is being joined anew")
        return member

    def _give_up(
        self,
        error: Exception,
        answers: Sequence[OutboxMessage],
        polled: Mapping[TopicPartition, int],
        began: float,
    ) -> bool:
        """The transaction did not go through, or nobody knows; what is not answered comes again. True: it had gone
        through after all.

        1. What a person must put right, or what ends this instance, is raised.
        2. Let go of the producer: a new one of the same id first brings the transaction to an end, one way or the
           other.
        3. Read on from what is committed then.
        """
        # 1.
        if isinstance(error, REFUSED):
            self._abort()
            raise UserError(
                f"the brokers refuse an answer to {answers[0].topic} ({type(error).__name__}): raise max.message.bytes "
                "of the topic, or lower predictor.top_k"
            ) from error
        if isinstance(error, kafka_errors.AuthorizationError):
            raise UserError(self._refusal(error, answers[0].topic)) from error
        # The brokers end what takes too long, and its producer finds itself fenced as by a newer process.
        by_another = is_fenced(error) and time.monotonic() - began < 0.8 * TRANSACTION_TIMEOUT_SECONDS
        if by_another or isinstance(error, kafka_errors.FencedInstanceIdError):
            raise self._fenced() from error
        log.info("a transaction of answers was given up: %s", error)
        # 2.
        producer, self._producer = self._producer, None
        if producer is not None:
            close_at_once(producer)
        try:
            with kafka_connection.hearing(self._stop):
                self._open_producer(_ATTEMPT_SECONDS)
            # 3.
            committed = {theirs: self._committed_of(theirs) for theirs in {*polled, *self._consumer.assignment()}}
            for theirs in self._consumer.assignment():
                offset = committed[theirs]
                if offset is None:
                    self._place_at_first(theirs)
                else:
                    self._committed[theirs] = max(offset, self._committed.get(theirs, 0))
                    self._consumer.seek(theirs, self._committed[theirs])
        except _DOUBT as problem:
            self._away(problem)
            self._rejoin()
            return False
        return all((committed[theirs] or 0) >= end for theirs, end in polled.items())

    def _abort(self) -> None:
        """Readers of the answers need not wait until the brokers do it."""
        producer = self._producer
        if producer is not None:
            with contextlib.suppress(kafka_errors.KafkaError, TimeoutError):
                within(_ATTEMPT_SECONDS, producer.abort_transaction)

    def _rejoin(self) -> None:
        """Positions that are not known to be good must not be read on from: drop them, and get the committed ones."""
        self._consumer.unsubscribe()
        self._consumer.subscribe([self._topic])

    def _place(self) -> None:
        """Where to begin with partitions of which nothing was ever committed."""
        for theirs in self._consumer.assignment():
            if self._committed_of(theirs) is None:
                self._place_at_first(theirs)

    def _place_at_first(self, theirs: TopicPartition) -> None:
        """Not all that lies there: the place is committed at once, or what comes until a first answer would be passed
        over by whoever begins anew after a kill."""
        if self._begins_at_ms is None:
            self._consumer.seek_to_beginning(theirs)
            return
        found = self._consumer.offsets_for_times({theirs: self._begins_at_ms}, timeout_ms=_OFFSETS_TIMEOUT_MS)[theirs]
        ends = self._consumer.end_offsets([theirs], timeout_ms=_OFFSETS_TIMEOUT_MS)
        offset = ends[theirs] if found is None else found.offset
        self._consumer.seek(theirs, offset)
        self._consumer.commit({theirs: OffsetAndMetadata(offset, "", -1)}, timeout_ms=_OFFSETS_TIMEOUT_MS)

    def _pass_over(self, positions: Mapping[TopicPartition, int]) -> None:
        """Requests that retention deleted cannot be answered; it is said. `LogTruncated` where the log ends before what
        was answered: to begin anew would answer all of it once more."""
        for theirs, offset in positions.items():
            beginning = self._consumer.beginning_offsets([theirs], timeout_ms=_OFFSETS_TIMEOUT_MS)[theirs]
            if offset >= beginning:
                raise LogTruncated(self._lost_tail())
            log.warning(
                "requests of %s-%s from offset %s to %s are gone from the log before they were answered",
                theirs.topic,
                theirs.partition,
                offset,
                beginning,
            )
            self._consumer.seek(theirs, beginning)

    def _lost_tail(self) -> str:
        return (
            f"{self._topic} does not hold what was answered last any more (it lost its tail, was made anew, or the "
            f"offsets of {self._group} were set past its end): set them to where answering is to go on, with "
            "kafka-consumer-groups.sh --reset-offsets, and start it again"
        )

    def _committed_of(self, theirs: TopicPartition) -> int | None:
        offset = self._consumer.committed(theirs, timeout_ms=_OFFSETS_TIMEOUT_MS)
        return None if offset is None else int(offset)

    def _trying(self, steps: Callable[[], None]) -> None:
        """The next poll comes to it again where the brokers do not answer."""
        try:
            steps()
        except kafka_errors.AuthorizationError as error:
            raise UserError(self._refusal(error)) from error
        except kafka_errors.KafkaError as error:
            self._away(error)

    def _away(self, error: Exception) -> None:
        """The client tries again by itself; said once."""
        if self._away_since is None:
            self._away_since = time.monotonic()
            log.warning("requests wait: the brokers do not answer (%s)", error)
        time.sleep(_PAUSE_SECONDS)

    def _open_producer(self, seconds: float) -> None:
        producer = transactional_producer(
            self._settings,
            self._id,
            timeout_seconds=TRANSACTION_TIMEOUT_SECONDS,
            compression="lz4",
            linger_ms=_LINGER_MS,
        )
        try:
            with held_back():
                within(seconds, producer.init_transactions, self._stop)
        except (kafka_errors.KafkaError, TimeoutError) as error:
            close_at_once(producer)
            if isinstance(error, kafka_errors.AuthorizationError):
                raise UserError(self._refusal(error)) from error
            if is_fenced(error):
                raise self._fenced() from error
            raise BrokerUnavailable(f"the brokers did not start transactions for {self._id} ({error})") from error
        self._producer = producer

    def _fenced(self) -> PredictorFenced:
        return PredictorFenced(
            f"another predictor answers as instance {self._instance!r} of {self._group}; this one ends: give each "
            "its own --instance"
        )

    def _refusal(self, error: kafka_errors.AuthorizationError, output: str | None = None) -> str:
        if isinstance(error, kafka_errors.TransactionalIdAuthorizationFailedError):
            return refusal("transactional-id", self._id, "Write")
        if isinstance(error, kafka_errors.GroupAuthorizationFailedError):
            return refusal("group", self._group, "Read")
        if output is not None:
            return refusal("topic", output, "Write")
        return refusal("topic", self._topic, "Read")
