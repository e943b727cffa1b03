"""Where commits are carried out: beside the training thread, which hands them over and hears later what came of it.

One piece of work at a time: commits have an order, and neither the commit log nor the store's pruning is made for two.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from typing import Generic, TypeVar

# While the training thread waits for a commit it shows this often that it is alive.
_TICK_SECONDS = 0.5

Outcome = TypeVar("Outcome")


class Commits(ABC, Generic[Outcome]):
    """Takes one piece of work at a time; whatever it raises is raised in `collect` or `wait`."""

    @property
    @abstractmethod
    def is_busy(self) -> bool:
        """Whether work was begun that is not yet collected, also where it has ended: nothing more may be begun."""

    @abstractmethod
    def begin(self, work: Callable[[], Outcome]) -> None:
        """Hand work over. What was begun before must have been collected."""

    @abstractmethod
    def collect(self) -> Outcome | None:
        """What came of the work; None while it goes on, and where there is none."""

    @abstractmethod
    def wait(self, tick: Callable[[], object]) -> Outcome | None:
        """As `collect`, after the work has ended; `tick` is called now and then meanwhile. Where that raises, the work
        goes on."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the thread once the work has ended; what came of it is dropped. More may begin afterwards."""


class CommitThread(Commits[Outcome]):
    """A thread of its own."""

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._future: Future[Outcome] | None = None

    @property
    def is_busy(self) -> bool:
        return self._future is not None

    def begin(self, work: Callable[[], Outcome]) -> None:
        assert self._future is None, "collect what came of the work before"
        if self._executor is None:
            self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="palimpsest-commit")
        self._future = self._executor.submit(work)

    def collect(self) -> Outcome | None:
        if self._future is None or not self._future.done():
            return None
        future, self._future = self._future, None
        return future.result()

    def wait(self, tick: Callable[[], object]) -> Outcome | None:
        while self._future is not None and not self._future.done():
            try:
                self._future.exception(timeout=_TICK_SECONDS)
            except NotYet:
                tick()
        return self.collect()

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True)
        self._executor = self._future = None


class CommitAtOnce(Commits[Outcome]):
    """The twin without a thread, for tests: the work is done when it is collected, which is right after `begin`."""

    def __init__(self) -> None:
        self._work: Callable[[], Outcome] | None = None

    @property
    def is_busy(self) -> bool:
        return self._work is not None

    def begin(self, work: Callable[[], Outcome]) -> None:
        assert self._work is None, "collect what came of the work before"
        self._work = work

    def collect(self) -> Outcome | None:
        work, self._work = self._work, None
        return None if work is None else work()

    def wait(self, tick: Callable[[], object]) -> Outcome | None:
        return self.collect()

    def close(self) -> None:
        self._work = None
