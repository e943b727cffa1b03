"""A process that writes snapshots and is killed at a fault point: a child of a process without threads, forked from it.

    python -m tests.model_store.killed_writer

Each line of its stdin is a JSON list: a fault point, the name of what to do in `WORKS`, the store's folder. For each it
prints how the child ended: "killed", or "not reached".
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import torch

from model_store.fault_points import on_fault_point
from model_store.snapshot import Snapshot
from model_store.snapshot_store import SnapshotStore

# To import torch on a busy machine, or to write one snapshot.
_SECONDS = 120.0


def forgotten(sequence: int) -> Snapshot:
    """What takes another one's place."""
    return Snapshot(generation=1, sequence=sequence, state={"w": torch.tensor([1.0])}, offsets={})


def _rewrite_oldest(store: SnapshotStore) -> None:
    oldest = store.entries()[0]
    store.rewrite(oldest, forgotten(oldest.sequence))


WORKS: MappingProxyType[str, Callable[[SnapshotStore], object]] = MappingProxyType(
    {"write the second": lambda store: store.write(forgotten(2)), "rewrite the oldest": _rewrite_oldest}
)


class KilledWriter:
    """The process, as a test speaks to it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def kill_at(self, point: str, work: str, folder: Path) -> None:
        """Let a child do this work until it is killed at the fault point; it must come there."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([point, work, str(folder)]).encode() + b"\n")
        answers, _, _ = select.select([self._process.stdout], [], [], _SECONDS)
        assert answers, f"{work} did not end in {_SECONDS:.0f} s"
        answer = self._process.stdout.readline().decode().strip()
        assert answer == "killed", f"{point}: {answer}"


@contextmanager
def killed_writer() -> Iterator[KilledWriter]:
    """Start it; it ends with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.model_store.killed_writer"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )
    try:
        yield KilledWriter(process)
    finally:
        process.kill()  # all that it holds is a wait for the next line
        process.communicate(timeout=_SECONDS)


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        point, work, folder = json.loads(line)
        child = os.fork()
        if child == 0:
            on_fault_point(lambda name, at=point: os.kill(os.getpid(), signal.SIGKILL) if name == at else None)  # type: ignore[misc]
            try:
                WORKS[work](SnapshotStore(Path(folder)))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print("killed" if killed else "not reached", flush=True)


if __name__ == "__main__":
    main()
