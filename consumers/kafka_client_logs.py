"""What of kafka-python's own log is passed on to whoever runs this: each complaint once in a while, noise never."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

# The same complaint of the client is passed on once in so many seconds: it complains at every attempt to reconnect.
_REPEAT_SECONDS = 30.0
# A busy machine makes the client's thread wait, and it takes that for a mistake in a program: nothing to do about it.
_NOISE = ("blocking the event loop",)


class _OnceInAWhile(logging.Filter):
    """Passes each complaint of the client on once in a while, and none while a connection is being made."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._last: dict[tuple[str, str], float] = {}
        self.held_back = 0

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        complaint = str(record.msg)
        if any(noise in complaint for noise in _NOISE):
            return False
        with self._lock:
            if self.held_back:
                return False
            key = (record.name, complaint)
            now = time.monotonic()
            if now - self._last.get(key, -_REPEAT_SECONDS) < _REPEAT_SECONDS:
                return False
            self._last[key] = now
            return True

    @contextmanager
    def holding_back(self) -> Iterator[None]:
        with self._lock:
            self.held_back += 1
        try:
            yield
        finally:
            with self._lock:
                self.held_back -= 1


_once_in_a_while = _OnceInAWhile()
held_back = _once_in_a_while.holding_back  # with held_back(): no complaint of the client gets through


def quieten_client_logs() -> None:
    """Loggers do not inherit filters, so each of the client's gets it."""
    for name in list(logging.root.manager.loggerDict):
        if name == "kafka" or name.startswith("kafka."):
            logging.getLogger(name).addFilter(_once_in_a_while)
