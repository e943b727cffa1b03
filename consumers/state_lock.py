"""Who works on a state folder: learners and restructurings beside each other, an erasure alone.

A `flock` on `<state>/lock`, which the system lets go of when its process ends, however that ends; the file itself stays
and says nothing. It holds between the processes of one machine, and on a network file system only where that one's
server keeps such locks: there, stop the learners yourself. A learner that runs all the same is fenced by the brokers.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.user_error import UserError

LOCK_FILE = "lock"
# An erasure rewrites a few snapshots: seconds. A supervisor that starts a learner meanwhile need not see it fail.
_WAIT_SECONDS = 10.0
_SECONDS_BETWEEN_TRIES = 0.05


class LockStopped(RuntimeError):
    """A stop was asked for while a lock was waited for."""


@contextmanager
def shared_lock(
    state: Path, *, wait_seconds: float = _WAIT_SECONDS, stop: threading.Event | None = None
) -> Iterator[None]:
    """A learner or a job works here. Waits for an erasure to end; `UserError` where that takes longer than
    `wait_seconds`, `LockStopped` where `stop` is set meanwhile."""
    with _open(state) as descriptor:
        deadline = time.monotonic() + wait_seconds
        while not _locked(descriptor, fcntl.LOCK_SH, state):
            if time.monotonic() >= deadline:
                raise UserError(f"an erasure works on {state} since more than {wait_seconds:.0f} s: start again later")
            if stop is not None and stop.is_set():
                raise LockStopped(f"stopped while waiting for an erasure of {state}")
            time.sleep(_SECONDS_BETWEEN_TRIES)
        yield


@contextmanager
def exclusive_lock(state: Path) -> Iterator[None]:
    """Nobody else works here; `UserError` at once where somebody does."""
    with _open(state) as descriptor:
        if not _locked(descriptor, fcntl.LOCK_EX, state):
            raise UserError(
                f"a learner, a rewind, a restructuring or another erasure works on {state}: stop it, erase, start it "
                "again"
            )
        yield


@contextmanager
def job_lock(jobs: Path) -> Iterator[None]:
    """The one job of a state; `UserError` at once where there is another."""
    with _open(jobs) as descriptor:
        if not _locked(descriptor, fcntl.LOCK_EX, jobs):
            raise UserError(f"another job works in {jobs}: one at a time")
        yield


@contextmanager
def _open(state: Path) -> Iterator[int]:
    """Closing it lets go of the lock."""
    try:
        descriptor = os.open(state / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UserError(f"cannot write to state folder {state}: {error.strerror}; give another --state") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _locked(descriptor: int, kind: int, state: Path) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UserError(
            f"the file system of {state} keeps no locks ({error.strerror}); give a --state on another one"
        ) from None
    return True
