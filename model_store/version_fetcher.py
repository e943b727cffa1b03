"""The fetcher: a process of its own that follows an alias in MLflow, so that MLflow never slows or stops a predictor.

    python -m model_store.version_fetcher --models DIR --stream NAME --role champion --tracking-uri URI --look-seconds S

It asks every so often, and at once where a byte comes on its stdin; it ends when its stdin ends (its parent closed it,
or was killed).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

from model_store.registry import ALIASES, Alias, Registry, RegistryRefused, RegistryUnavailable, ServableBroken
from model_store.served_versions import ServedVersions
from model_store.tracking_uri import missing_database
from pipeline.user_error import UserError

# Above the learner's registrar, below the predictor: a swap may take a moment longer, an answer may not.
_NICENESS = 2


class VersionFetcher:
    """Makes what an alias points to lie here."""

    def __init__(
        self,
        versions: ServedVersions,
        registry: Registry,
        role: Alias,
        *,
        tell: Callable[[str], None],
        missing: Callable[[], str | None] = lambda: None,
    ) -> None:
        """`tell` hears one line where something changes for the worse or back. `missing`: why the registry is not there
        to be asked, and must not be, since that would make an empty one; None: it is there."""
        self._versions, self._registry, self._role = versions, registry, role
        self._tell = tell
        self._missing = missing
        self._problem: str | None = None

    def look(self) -> None:
        """Once. Whatever is in the way, what is here stays what is served.

        1. What does the alias point to?
        2. Fetch it where it is not here.
        3. Note it, and let go of what nobody needs.
        """
        known = self._versions.role(self._role)
        version = None
        try:
            # 1.
            problem = self._missing()
            if problem is None:
                version = self._registry.alias(self._versions.stream, self._role)
                with contextlib.suppress(OSError):  # then it looks as if this process hung: somebody comes to see
                    self._versions.looked(self._role).touch()
            if version is not None:
                # 2.
                served = self._versions.keep(version, self._registry.fetch_servable)
                known = known.model_copy(update={"served": served})
            elif problem is None:
                problem = (
                    f"model {self._versions.stream!r} has no alias {self._role!r}: give it to a version, in MLflow or "
                    f"with `palimpsest promote --stream {self._versions.stream}`"
                )
        except ServableBroken as error:
            problem = f"version {version.version if version else ''} is refused: its artifact is not whole ({error})"
        except (RegistryUnavailable, RegistryRefused, OSError) as error:
            problem = str(error)
        # 3.
        if problem != self._problem:
            self._problem = problem
            self._tell(problem or f"{self._role} is version {known.served.version if known.served else None}")
        try:
            self._versions.note(
                self._role, known.model_copy(update={"problem": problem, "stream": self._versions.stream})
            )
            self._versions.prune()
        except OSError as error:
            self._tell(f"cannot write to {self._versions.folder}: {error}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m model_store.version_fetcher")
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--stream", required=True)
    parser.add_argument("--role", choices=ALIASES, required=True)
    parser.add_argument("--tracking-uri", required=True)
    parser.add_argument("--look-seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    os.nice(_NICENESS)
    closing, look_now = threading.Event(), threading.Event()
    threading.Thread(target=_watch_stdin, args=(closing, look_now), daemon=True).start()

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    from model_store.mlflow_registry import MlflowRegistry  # seconds, in this process and not in the predictor's

    try:
        versions = ServedVersions(arguments.models, arguments.stream)
        versions.prepare()
        registry = MlflowRegistry(arguments.tracking_uri)
        fetcher = VersionFetcher(
            versions,
            registry,
            cast(Alias, arguments.role),
            tell=tell,
            missing=lambda: missing_database(arguments.tracking_uri),
        )
        while not closing.is_set():
            fetcher.look()
            look_now.wait(arguments.look_seconds)
            look_now.clear()  # before `closing` is looked at: an end that comes in between is not slept over
    except UserError as error:
        tell(str(error))
        return UserError.exit_code
    return 0


def _watch_stdin(closing: threading.Event, look_now: threading.Event) -> None:
    """A byte: look now. The end of the parent, however it came, is the end of the pipe."""
    while os.read(sys.stdin.fileno(), 4096):
        look_now.set()
    closing.set()
    look_now.set()


if __name__ == "__main__":
    sys.exit(main())
