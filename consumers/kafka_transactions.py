"""What every transactional producer of ours needs to know of kafka-python 3.0.12: waits, fencing, refusals, the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from kafka import KafkaProducer
from kafka import errors as kafka_errors

from consumers import kafka_connection
from consumers.commit_log import BrokerUnavailable
from consumers.kafka_nullable import NullableSerializer
from consumers.kafka_settings import KafkaSettings

# The brokers abort a transaction that a killed program left open after this; until then it holds back whoever reads
# committed records of the topics in it.
TRANSACTION_TIMEOUT_SECONDS = 60.0
# An attempt that takes longer than this, and than a slow network needs for what is in it, is given up: the client can
# wait for ever after a broker came back (its next request is lost with the old connection).
ATTEMPT_SECONDS = 10.0
SLOWEST_BYTES_PER_SECOND = 2_000_000
# The sender sleeps this long on every transactional retry, and each transaction that follows another at once meets one
# (the brokers are still writing the markers of the one before). The default of 100 ms allows 6 commits a second.
_RETRY_BACKOFF_MS = 5
# While something waits for the brokers, it looks for a stop this often.
STOP_LOOK_SECONDS = 0.2
# The brokers' socket.request.max.bytes is 100 MiB by default.
MAX_REQUEST_BYTES = 100 * 1024 * 1024 - 64 * 1024

REFUSED = (
    kafka_errors.MessageSizeTooLargeError,
    kafka_errors.RecordListTooLargeError,
    kafka_errors.InvalidRecordError,
    kafka_errors.InvalidTimestampError,
    kafka_errors.InvalidTopicError,
)
_FENCED = (kafka_errors.ProducerFencedError, kafka_errors.InvalidProducerEpochError)


def transactional_producer(
    settings: KafkaSettings,
    transactional_id: str,
    *,
    timeout_seconds: float = TRANSACTION_TIMEOUT_SECONDS,
    compression: str = "zstd",
    linger_ms: int = 0,
) -> KafkaProducer:
    """One that has not begun: `init_transactions` is the next call. `timeout_seconds`: after which the brokers abort
    its transaction; `linger_ms`: as long messages may wait for others, or for a flush. Raises as
    `kafka_connection.producer`."""
    return kafka_connection.producer(
        settings,
        transactional_id=transactional_id,
        transaction_timeout_ms=int(timeout_seconds * 1000),
        retry_backoff_ms=_RETRY_BACKOFF_MS,
        max_request_size=MAX_REQUEST_BYTES,
        compression_type=compression,
        linger_ms=linger_ms,
        value_serializer=NullableSerializer(),
    )


def is_fenced(error: BaseException) -> bool:
    """Whether it says that another producer has the transactional id now."""
    # Once the client knows, every further call fails with a plain KafkaError that carries or quotes the reason.
    reasons = (error, *error.args)
    return any(isinstance(reason, _FENCED) or "ProducerFenced" in str(reason) for reason in reasons)


def attempt_seconds(size_bytes: int) -> float:
    """How long one transaction of so many bytes may take."""
    return min(ATTEMPT_SECONDS + size_bytes / SLOWEST_BYTES_PER_SECOND, TRANSACTION_TIMEOUT_SECONDS)


def within(timeout_seconds: float | None, steps: Callable[[], None], stop: threading.Event | None = None) -> None:
    """Run `steps`, whose calls wait for ever where no broker answers (None: they do not). Raises `TimeoutError`, and
    `BrokerUnavailable` as soon as `stop` is set.

    The thread that is left behind then is woken by nobody; it is a daemon, and its producer is never used again.
    """
    problems: list[BaseException] = []
    stopped = BrokerUnavailable("stopped while waiting for the brokers; the next start goes on from here")
    if stop is not None and stop.is_set():
        raise stopped

    def run() -> None:
        try:
            steps()
        except BaseException as problem:
            problems.append(problem)

    thread = threading.Thread(target=run, name="palimpsest-transaction", daemon=True)
    thread.start()
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    while thread.is_alive() and (deadline is None or time.monotonic() < deadline):
        if stop is not None and stop.is_set():
            raise stopped
        left_seconds = None if deadline is None else max(0.0, deadline - time.monotonic())
        thread.join(left_seconds if stop is None else min(STOP_LOOK_SECONDS, left_seconds or STOP_LOOK_SECONDS))
    if thread.is_alive():
        raise TimeoutError(f"no answer of the brokers within {timeout_seconds:.0f} s")
    if problems:
        raise problems[0]


def close_at_once(producer: KafkaProducer) -> None:
    """Whatever the producer still had to send is not to be sent: its transaction is aborted by whoever comes next."""
    try:
        producer.close(timeout=0)
    except kafka_errors.KafkaTimeoutError:
        producer._sender.force_close()
