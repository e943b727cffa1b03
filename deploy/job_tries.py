"""How often a job was begun by a process that ended in its midst: one that kills its worker must not be done for ever.

<folder>/<job>.tries    how often; it is there from a job's beginning to its end in an orderly way
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from model_store.durable_files import make_folder, replace_file


class JobTries:
    """Beside what is saved of the jobs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def count(self, job: str) -> int:
        """Of processes that were killed or broke down since one ended in an orderly way."""
        with suppress(OSError, ValueError):
            return int(self._file(job).read_text())
        return 0

    def begin(self, job: str) -> None:
        """This process begins. Raises `OSError`."""
        make_folder(self._folder)
        replace_file(self._file(job), str(self.count(job) + 1).encode())

    def end(self, job: str) -> None:
        """In an orderly way, whatever came of it. Raises `OSError`."""
        self._file(job).unlink(missing_ok=True)

    def _file(self, job: str) -> Path:
        return self._folder / f"{job}.tries"
