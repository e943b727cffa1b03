"""What has to be told with the next commit."""

from __future__ import annotations

from collections.abc import Iterable

from model_store.snapshot import OutboxMessage


class Outbox:
    """Messages in the order in which they are to be told. A full one asks for a commit; it still takes more."""

    def __init__(self, *, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._bytes = 0
        self.messages: list[OutboxMessage] = []

    def __bool__(self) -> bool:
        return bool(self.messages)

    @property
    def is_full(self) -> bool:
        return len(self.messages) >= self._max_messages or self._bytes >= self._max_bytes

    @property
    def is_overfull(self) -> bool:
        """So much that nothing more may be added before a commit goes through."""
        return len(self.messages) >= 4 * self._max_messages or self._bytes >= 4 * self._max_bytes

    def add(self, messages: Iterable[OutboxMessage]) -> None:
        for message in messages:
            self.messages.append(message)
            self._bytes += message.size_bytes

    def take(self) -> tuple[OutboxMessage, ...]:
        """All of it, to be told now."""
        messages = tuple(self.messages)
        self.messages.clear()
        self._bytes = 0
        return messages

    def put_back(self, messages: Iterable[OutboxMessage]) -> None:
        """They could not be told; they stand before what came since."""
        since = self.take()
        self.add(messages)
        self.add(since)
