"""The registrar: a process of its own that registers what waits, so that MLflow never slows or stops learning.

    python -m model_store.registrar --queue DIR --tracking-uri URI --drain-seconds S

It ends when its stdin ends (its parent closed it, or was killed) and the queue is empty, the registry is away, or
`drain-seconds` have passed. What still waits then is registered by a later run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from model_store.registration_queue import RegistrationQueue
from model_store.registry import (
    ALIASES,
    RegisteredVersion,
    Registry,
    RegistryRefused,
    RegistryUnavailable,
    ServableBroken,
)
from pipeline.user_error import UserError

# The queue is looked at this often: a look is one listing of a folder.
_POLL_SECONDS = 0.2
# First and longest wait for a registry that is away or refuses.
_FIRST_BACK_OFF_SECONDS = 1.0
_LONGEST_BACK_OFF_SECONDS = 60.0
# A person may point an alias to another version at any time; until it is noted, its snapshot may be pruned.
_ALIASES_SECONDS = 60.0
# Below the learner's priority: registering may take longer, learning may not.
_NICENESS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrarReport:
    """What one run of the registrar did."""

    registered: int
    waiting: int
    problem: str | None  # why the newest try failed, if it did


class Registrar:
    """Takes the oldest request, registers it, leaves a receipt; over and over."""

    def __init__(self, queue: RegistrationQueue, registry: Registry, *, tell: Callable[[str], None]) -> None:
        """`tell` hears one line where something changes for the worse or back."""
        self._queue = queue
        self._registry = registry
        self._tell = tell
        self._aliases_due = float("-inf")  # monotonic

    def run(self, closing: threading.Event, drain_seconds: float) -> RegistrarReport:
        """Until `closing` is set and there is no more to do, or no more that can be done now.

        1. Another registrar may still be at work (its learner was killed, it drains): wait for the lock.
        2. Take the oldest request; where there is none, wait for one, or end. Every so often note the aliases.
        3. Register it. Away or refused: wait longer each time, or end. Broken: set it aside.
        4. Note the aliases, which the registration has moved. Leave the receipt; the request goes.
        """
        registered, back_off, problem = 0, _FIRST_BACK_OFF_SECONDS, None
        deadline: float | None = None

        def is_over() -> bool:
            nonlocal deadline
            if not closing.is_set():
                return False
            deadline = deadline or time.monotonic() + drain_seconds
            return time.monotonic() >= deadline

        # 1.
        while not is_over():
            with self._queue.lock() as locked:
                while locked and not is_over():
                    # 2.
                    if time.monotonic() >= self._aliases_due and not closing.is_set():
                        self._note_aliases()
                    pending = self._queue.oldest()
                    if pending is None:
                        if closing.is_set():
                            return RegistrarReport(registered=registered, waiting=0, problem=problem)
                        closing.wait(_POLL_SECONDS)
                        continue
                    # 3.
                    try:
                        version = self._registry.register(pending.request)
                    except ServableBroken as error:
                        self._tell(f"registration {pending.number} was set aside: {error}")
                        self._queue.set_aside(pending.number, pending.request.snapshot_sha256, str(error))
                        continue
                    except (RegistryUnavailable, RegistryRefused) as error:
                        if problem is None:
                            self._tell(f"versions wait, to be registered later: {error}")
                        problem = str(error)
                        if closing.is_set():
                            break
                        closing.wait(back_off)
                        back_off = min(2 * back_off, _LONGEST_BACK_OFF_SECONDS)
                        continue
                    # 4.
                    self._note_aliases(version)
                    self._queue.finish(pending, version)
                    registered += 1
                    if problem is not None:
                        self._tell(f"the registry answers again: version {version.version} is registered")
                    back_off, problem = _FIRST_BACK_OFF_SECONDS, None
                if locked:
                    break
            closing.wait(_POLL_SECONDS)
            if closing.is_set() and not self._queue.pending_numbers():
                break
        return RegistrarReport(registered=registered, waiting=len(self._queue.pending_numbers()), problem=problem)

    def _note_aliases(self, registered: RegisteredVersion | None = None) -> None:
        """Write down what the aliases of the queue's stream, of other known ones, and of the version just registered,
        point to.

        Where the registry does not answer, what was known before stays until the next time; that it is away is told
        when something has to be registered. Where what was known before cannot be read either, it stays as it is (the
        learner deletes nothing meanwhile): half of the truth in its place would say that the other half may go.

        1. What was known before. 2. The version's own. 3. What the registry says, of the queue's own stream always.
        """
        self._aliases_due = time.monotonic() + _ALIASES_SECONDS
        # 1.
        readable, known = True, dict[str, dict[str, str]]()
        try:
            known.update(self._queue.aliases())
        except OSError as error:
            self._tell(f"the aliases are asked for anew: {error}")
            readable = False
        # 2.
        if registered is not None and registered.snapshot_sha256 is not None:
            own = dict.fromkeys(registered.aliases, registered.snapshot_sha256)
            known[registered.stream] = {**known.get(registered.stream, {}), **own}
        # 3.
        streams = {*known, *filter(None, [self._queue.stream()])}
        try:
            known = {stream: self._aliases_of(stream) for stream in sorted(streams)}
        except (RegistryUnavailable, RegistryRefused):
            if not readable:
                return
        if readable or known:
            self._queue.note_aliases(known)

    def _aliases_of(self, stream: str) -> dict[str, str]:
        """{alias: SHA-256 of its version's snapshot}."""
        versions = {alias: self._registry.alias(stream, alias) for alias in ALIASES}
        return {
            alias: version.snapshot_sha256
            for alias, version in versions.items()
            if version is not None and version.snapshot_sha256 is not None
        }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m model_store.registrar")
    parser.add_argument("--queue", type=Path, required=True)
    parser.add_argument("--tracking-uri", required=True)
    parser.add_argument("--drain-seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    with contextlib.suppress(OSError):  # already lower than that
        os.nice(_NICENESS)
    closing = threading.Event()
    threading.Thread(target=_watch_stdin, args=(closing,), daemon=True).start()

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    from model_store.mlflow_registry import MlflowRegistry  # seconds, in this process and not in the learner's

    try:
        registry = MlflowRegistry(arguments.tracking_uri)
        with contextlib.suppress(RegistryUnavailable, RegistryRefused):  # told when there is something to register
            registry.warm_up()
        Registrar(RegistrationQueue(arguments.queue), registry, tell=tell).run(closing, arguments.drain_seconds)
    except UserError as error:
        tell(str(error))
        return UserError.exit_code
    return 0


def _watch_stdin(closing: threading.Event) -> None:
    """Nothing is ever sent: the end of the parent, however it came, is the end of the pipe."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    closing.set()


if __name__ == "__main__":
    sys.exit(main())
