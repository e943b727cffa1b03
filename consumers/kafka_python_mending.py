"""Faults of kafka-python 3.0.12, mended in its internals; any other version is left as it is, with one line in the log.

All that touches the client's private parts at import is here, and it is imported only where the version is the one that
these were written against: another one still connects, with the faults below or its own.
"""

from __future__ import annotations

import logging
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import kafka
from kafka import TopicPartition
from kafka import errors as kafka_errors
from kafka.structs import OffsetAndMetadata

from consumers.record_batch import records_in
from pipeline.record import Record

log = logging.getLogger(__name__)

MENDED_VERSION = "3.0.12"

_REFUSALS = (
    kafka_errors.SaslAuthenticationFailedError,
    kafka_errors.UnsupportedSaslMechanismError,
    kafka_errors.AuthorizationError,
)
_done: list[bool] = []
# Of the client's tasks that make a connection: until when, in seconds of the monotonic clock.
_connect_until: WeakKeyDictionary[Any, float | None] = WeakKeyDictionary()

# Read from a socket at once: a fetch, of 1 MiB of each partition by default, is a handful of them.
_READ_BYTES = 256 * 1024
_NOTHING_MORE_YET = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


def mends_this_version() -> bool:
    """Whether the client that is installed is the one that these mendings are for."""
    return bool(kafka.__version__ == MENDED_VERSION)


def mend() -> None:
    """Mend the client, once; on another version say so, once, and leave it alone."""
    if _done:
        return
    _done.append(True)
    if not mends_this_version():
        log.warning(
            "kafka-python is %s, and known faults are mended for %s only; `pip install kafka-python==%s`",
            kafka.__version__,
            MENDED_VERSION,
            MENDED_VERSION,
        )
        return
    _close_given_up_sockets()
    _receive_in_large_parts()
    _read_odd_header_names()
    _name_what_does_not_decompress()
    _keep_epochs_of_positions()
    _finish_joins()


def client_options(opened: list[Any]) -> dict[str, Any]:
    """Options for a client that can be closed where its making failed: what it opens is added to `opened`.

    Fault: a client that cannot connect raises, and leaves behind threads that go on trying for ever.
    """
    if not mends_this_version():
        return {}
    from kafka.net.compat import KafkaNetClient
    from kafka.net.selector import NetworkSelector

    manager_class = _connection_manager()

    def net_client(**configs: Any) -> Any:
        opened.append(net := NetworkSelector(**configs))
        opened.append(manager := manager_class(net, **configs))
        return KafkaNetClient(net=net, manager=manager)

    return {"kafka_client": net_client}


def leader_epoch(consumer: Any, partition: TopicPartition) -> int:
    """The leader epoch that the client knows of a partition; -1: none.

    Fault: `KafkaConsumer` has it, and shows it nowhere.
    """
    if not mends_this_version():
        return -1
    known = consumer._cluster.leader_epoch_for_partition(partition)
    return -1 if known is None else int(known)


def position_epoch(consumer: Any, partition: TopicPartition) -> int:
    """The leader epoch of the batch before the position; -1: nothing was read, or it is not known."""
    if not mends_this_version():
        return -1
    position = consumer._subscription.assignment[partition].position
    return -1 if position is None else int(position.leader_epoch)


def seek(consumer: Any, partition: TopicPartition, offset: int, epoch: int) -> None:
    """Read on from `offset`, before which the log was written in leader epoch `epoch`, or earlier; -1: not known.

    Fault: `KafkaConsumer.seek` takes no epoch. Without one the client cannot tell a log that lost its tail and has
    grown past the position again from one that lost nothing, and reads on in the midst of records it knows nothing of.
    """
    consumer.seek(partition, offset)
    if offset > 0 and epoch >= 0 and mends_this_version():
        consumer._subscription.assignment[partition].seek(OffsetAndMetadata(offset, "", epoch))


def _finish_joins() -> None:
    """Fault: a member joins anew since its topic's partitions became known, the poll ends before the brokers' answer,
    and by the next one nothing seems to call for a join any more. What was assigned is never taken over: the member
    polls nothing for ever, and sends no heartbeats."""
    from kafka.coordinator.consumer import ConsumerCoordinator

    of_client = ConsumerCoordinator.need_rejoin

    def need_rejoin(self: Any) -> bool:
        return bool(self.rejoining or of_client(self))

    ConsumerCoordinator.need_rejoin = need_rejoin


def was_replaced_in_group(consumer: Any) -> bool:
    """Whether a static member was told that another one has its place. Ask at two polls: at the end of a join it may
    look so for a moment.

    Fault: the client hears it in a heartbeat, logs it, sends none any more, and polls on as if nothing had been.
    """
    if not mends_this_version():
        return False
    coordinator = consumer._coordinator
    return bool(coordinator.stable() and not coordinator.rejoining and not coordinator._heartbeat_enabled)


def has_joined_group(consumer: Any) -> bool:
    """Whether the group has given this member its partitions, which may be none, and nothing is to change about it.

    The client tells its generation before it knows these, and nothing else to whoever has no listener. A leader that
    does not know the topic yet gives nobody any, and joins anew at once.
    """
    if not mends_this_version():
        return bool(consumer.group_metadata().generation_id >= 0)
    coordinator = consumer._coordinator
    return bool(coordinator.stable() and not coordinator.rejoining and not coordinator.need_rejoin())


def unpack_into_records(consumer: Any) -> bool:
    """From now on this consumer's `poll` gives our records; False: it goes on giving the client's own.

    Fault: the client makes a record of its own, then another, of what it has unpacked with a call for every number. It
    is what most of a poll's time goes to.
    """
    if not mends_this_version():
        return False
    consumer._fetcher.PartitionRecords = _partition_records()
    return True


def _partition_records() -> Any:
    """The client's own, but for what is made of a batch: which batches count is asked as it asks."""
    from kafka.consumer.fetcher import Fetcher
    from kafka.protocol.consumer import IsolationLevel

    class PartitionRecords(Fetcher.PartitionRecords):  # type: ignore[misc]
        def _unpack_records(self, tp: TopicPartition, records: Any, *_deserializers: Any) -> Iterator[Record]:
            last = None
            while (batch := records.next_batch()) is not None:
                last = batch
                if self.check_crcs and not batch.validate_crc():
                    raise kafka_errors.CorruptRecordError(
                        f"the batch of {tp} from offset {batch.base_offset} on does not match its checksum"
                    )
                if batch.magic == 2:
                    self.leader_epoch = batch.leader_epoch
                    if self._is_aborted(batch) or batch.is_control_batch:
                        self.next_fetch_offset = batch.next_offset
                        continue
                self.bytes_read += batch.size_in_bytes
                for record in _records_of(batch, tp, self.check_crcs):
                    self.records_read += 1
                    self.next_fetch_offset = record.offset + 1
                    yield record
            if last is not None and last.magic == 2:
                self.next_fetch_offset = last.next_offset  # beyond records that compaction took
            self.drain()

        def _is_aborted(self, batch: Any) -> bool:
            """Of a transaction that was aborted; asked of every batch in the order of the log."""
            if self.isolation_level != IsolationLevel.READ_COMMITTED or not batch.has_producer_id():
                return False
            self._consume_aborted_transactions_up_to(batch.last_offset)
            if self._contains_abort_marker(batch):
                self.aborted_producer_ids.discard(batch.producer_id)
                return False
            return bool(self._is_batch_aborted(batch))

    return PartitionRecords


def _records_of(batch: Any, partition: TopicPartition, check_crcs: bool) -> Iterator[Record]:
    """What cannot be read as it should be is read by the client, which knows more and says what is wrong."""
    if batch.magic == 2:
        iter(batch)  # decompresses
        try:
            records = records_in(
                bytes(memoryview(batch._buffer)[batch._pos :]),
                batch.records_count,
                topic=partition.topic,
                partition=partition.partition,
                base_offset=batch.base_offset,
                base_timestamp_ms=batch.first_timestamp,
                append_timestamp_ms=batch.max_timestamp if batch.timestamp_type else None,
            )
        except (ValueError, IndexError):
            pass
        else:
            yield from records
            return
    for record in batch:
        if check_crcs and not record.validate_crc():
            raise kafka_errors.CorruptRecordError(f"{partition} offset {record.offset} does not match its checksum")
        yield Record(
            partition.topic,
            partition.partition,
            record.offset,
            record.value,
            record.key,
            tuple(record.headers),
            record.timestamp,
        )


def our_record(theirs: Any) -> Record:
    """Of what `poll` gives where `unpack_into_records` could not change it."""
    return Record(
        theirs.topic,
        theirs.partition,
        theirs.offset,
        theirs.value,
        theirs.key,
        tuple(theirs.headers),
        theirs.timestamp,
    )


def topic_id(consumer: Any, topic: str) -> str | None:
    """The topic's id, as of the last time that the client asked for the topic; None: not known."""
    known = consumer._cluster.topic_id(topic) if mends_this_version() else None
    return None if known is None else str(known)


def _connection_manager() -> Any:
    """Fault: a refused password is tried again until time is up. Here it ends the attempt to connect.

    Only for the first connection: a broker that refuses later, because it is restarting, is tried again.

    Fault: a peer that does not answer a TLS handshake is waited for without end, whatever the timeouts say.

    Fault: of several bootstrap servers one is tried by chance, again and again, and may take all the time that there is
    by saying nothing. Here all are tried before one is tried again, and they share what time is left.
    """
    from kafka.net.manager import KafkaConnectionManager

    class ConnectionManager(KafkaConnectionManager):  # type: ignore[misc]
        def __init__(self, net: Any, **configs: Any) -> None:
            super().__init__(net, **configs)
            every_server = self.cluster.bootstrap_brokers

            def least_tried() -> list[Any]:
                servers = every_server()
                failures = [self._backoff.get(server.node_id, (0,))[0] for server in servers]
                return [server for server, failed in zip(servers, failures, strict=True) if failed == min(failures)]

            self.cluster.bootstrap_brokers = least_tried

        async def _build_transport(self, node: Any, timeout_at: float | None = None) -> Any:
            _connect_until[self._net._current] = timeout_at  # the task that the handshake will run in
            return await super()._build_transport(node, timeout_at)

        async def _connect(self, node: Any, conn: Any, timeout_at: float | None = None, **options: Any) -> None:
            if timeout_at is not None and self.cluster.is_bootstrap(node.node_id):
                now = time.monotonic()
                timeout_at = now + (timeout_at - now) / len(self.cluster.bootstrap_brokers())
            await super()._connect(node, conn, timeout_at=timeout_at, **options)
            problem = conn.init_future.exception
            if self.cluster.is_bootstrap(node.node_id) and isinstance(problem, _REFUSALS):
                self._auth_failures[node.node_id] = problem  # raised by the next get_connection

    return ConnectionManager


def _close_given_up_sockets() -> None:
    """Fault: the socket of a connection that was refused, or took too long, or whose client was closed meanwhile, and
    of a TLS handshake that ended so, is dropped without being closed.

    While brokers are away, each attempt would hold a file descriptor until the garbage collector comes by. Here a
    handshake also ends in time (see `_connection_manager`).
    """
    from kafka.net.inet import KafkaNetSocket
    from kafka.net.transport import KafkaSSLTransport

    connect = KafkaNetSocket.sock_connect

    async def closing_connect(self: Any, net: Any, sock: socket.socket, sockaddr: Any, timeout_at: Any = None) -> Any:
        try:
            return await connect(self, net, sock, sockaddr, timeout_at=timeout_at)
        except BaseException:  # a client that is closed throws GeneratorExit
            sock.close()
            raise

    async def closing_handshake(self: Any) -> None:
        until = _connect_until.get(self._net._current)
        try:
            while True:
                try:
                    self._sock.do_handshake()
                    return
                except ssl.SSLWantReadError:
                    await self._net.wait_read(self._sock, until)
                except ssl.SSLWantWriteError:
                    await self._net.wait_write(self._sock, until)
        except BaseException:
            self._sock.close()
            raise

    KafkaNetSocket.sock_connect, KafkaSSLTransport.handshake = closing_connect, closing_handshake


def _receive_in_large_parts() -> None:
    """Fault: an answer that arrives together with the end of the connection is thrown away.

    A broker answers a wrong password so, and one that shuts down answers its last requests so.

    Fault: 4 KiB are read at once, 256 times for a fetch, by a thread that must get hold of Python's lock again after
    each, for which a busy thread beside it may let it wait 5 ms.
    """
    from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport

    def large_parts(receive: Callable[[Any], tuple[bytes, Any]]) -> Callable[[Any], tuple[bytes, Any]]:
        def received(self: Any) -> tuple[bytes, Any]:
            parts = []
            try:
                while part := self._sock.recv(_READ_BYTES):
                    parts.append(part)
            except _NOTHING_MORE_YET:
                return b"".join(parts), None
            except Exception as error:  # also of a socket that was closed meanwhile, which may be None
                if not parts:
                    log.info("%s: the connection ended: %s", self, error)
                    return b"", kafka_errors.KafkaConnectionError(error)
            # The end, which the client's own words are for: at once, or where it is met again by the next receive.
            return (b"".join(parts), None) if parts else receive(self)

        return received

    for transport in (KafkaTCPTransport, KafkaSSLTransport):
        transport._sock_recv = large_parts(transport._sock_recv)


class _Escaping(bytearray):
    """Bytes whose slices decode to text whatever they are: `\\xff` in place of a byte that is no UTF-8."""

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return _Escaping(found) if isinstance(found, bytearray) else found

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return super().decode(encoding, "backslashreplace")


def _read_odd_header_names() -> None:
    r"""Fault: a header's name that is not UTF-8, which librdkafka may send, ends the reading at that record for ever.

    Here it is read as text with `\xff` in place of such bytes: a name that means nothing to us, and the record counts.
    """
    from kafka.record.default_records import DefaultRecordBatch

    read = DefaultRecordBatch._read_msg

    def reading(self: Any) -> Any:
        try:
            return read(self)
        except UnicodeDecodeError:
            # Nothing was noted of the record yet, so it is read again; the rest of its batch is read this way too.
            self._buffer = _Escaping(self._buffer)
            return read(self)

    DefaultRecordBatch._read_msg = reading


def _name_what_does_not_decompress() -> None:
    """Fault: a batch that does not decompress raises whatever its codec raises. Here it is a `CorruptRecordError`."""
    from kafka.record.default_records import DefaultRecordBatch

    decompress = DefaultRecordBatch._maybe_uncompress

    def decompressing(self: Any) -> None:
        try:
            decompress(self)
        except (kafka_errors.KafkaError, MemoryError):
            raise
        except Exception as error:
            raise kafka_errors.CorruptRecordError(
                f"the batch from offset {self.base_offset} on does not decompress: {error!r}"
            ) from error

    DefaultRecordBatch._maybe_uncompress = decompressing


def _keep_epochs_of_positions() -> None:
    """Fault: an answer without records makes the client forget the epoch of its position.

    From then on it does not notice any more that the log has lost its tail (see `seek`).
    """
    from kafka.consumer.fetcher import Fetcher

    append = Fetcher._append

    def appending(self: Any, drained: Any, part: Any, max_records: int, update_offsets: bool) -> Any:
        if part and part.leader_epoch < 0 and self._subscriptions.is_assigned(part.topic_partition):
            position = self._subscriptions.assignment[part.topic_partition].position
            if position is not None and position.offset == part.next_fetch_offset:
                part.leader_epoch = position.leader_epoch  # the first batch, if there is one, sets its own
        return append(self, drained, part, max_records, update_offsets)

    Fetcher._append = appending
