"""The contract of where requests come from and answers go, exactly once: read as one of a group, answered in
transactions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from consumers.commit_log import LearnerFenced
from model_store.snapshot import OutboxMessage
from pipeline.record import Partition, Record


class PredictorFenced(LearnerFenced):
    """Another predictor of the same instance name has taken over. This one answers nothing more."""


class RequestLog(ABC):
    """Requests that this member of the group has to answer. Not thread-safe: one thread at a time.

    Brokers that are away are no error: nothing comes until they are back.
    """

    @abstractmethod
    def poll(self, max_records: int, timeout_seconds: float) -> list[Record]:
        """The next requests, in the log's order within each partition; empty where none came in time.

        What the poll before gave must have been answered. Raises `PredictorFenced`, `LogTruncated` where the log lost
        what was answered before, `RecordUnreadable` and `UserError`.
        """

    @abstractmethod
    def answer(self, answers: Sequence[OutboxMessage]) -> bool:
        """The answers to all requests of the last poll, and that they are answered, in one transaction.

        False: not by this call, as far as is known: the partitions went to another member meanwhile, or the brokers
        were away; whoever has the partitions now is given what is not answered again. Raises `PredictorFenced` and
        `UserError`.
        """

    @abstractmethod
    def lag_records(self) -> dict[Partition, int]:
        """Requests behind those that were polled, of the partitions that are ours now, as far as it is known."""

    @abstractmethod
    def is_at_end(self) -> bool:
        """Whether this member has joined its group and polled all that its partitions hold for readers of committed
        records. A member without a partition is at its end; what cannot be asked is not."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the brokers; may be called twice. Another member has the partitions after the session's time, if
        this one does not come back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
