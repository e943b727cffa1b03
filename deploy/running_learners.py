"""Where the learners of this machine answer: each leaves a note, for `palimpsest status` and for completion.

    ~/.local/state/palimpsest/learners/<id>.json    one a learner, of all that this user runs (PALIMPSEST_LEARNERS_DIR)
    <state>/learner.json                            the same, for who knows the state's folder

A note goes when its learner ends. One that was killed leaves it: a process that is gone is known by its number, and a
number that somebody else has now by what answers at the address, which `find_learners` asks. Where no note can be
written, nobody finds the learner by its name, and nothing else is lost.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

FOLDER_VARIABLE = "PALIMPSEST_LEARNERS_DIR"
NOTE_IN_STATE = "learner.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerNote:
    """What a learner leaves."""

    stream: str
    branch: str
    url: str
    state: str  # its folder, absolute
    pid: int
    host: str
    started_at: float

    @property
    def is_of_this_machine(self) -> bool:
        """Elsewhere its address leads to somebody else, and its process cannot be seen."""
        return self.host == socket.gethostname()

    @property
    def is_stale(self) -> bool:
        """Its process is gone for certain."""
        return self.is_of_this_machine and not _is_alive(self.pid)


def notes_folder() -> Path | None:
    """Where they are. None: nowhere, since this user has no home, as one that a container is given by its number."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    try:
        return Path(chosen) if chosen else Path.home() / ".local" / "state" / "palimpsest" / "learners"
    except RuntimeError:
        return None


@contextmanager
def announced(*, stream: str, branch: str, url: str, state: Path) -> Iterator[None]:
    """While it is entered, the notes are there."""
    note = LearnerNote(
        stream=stream,
        branch=branch,
        url=_reachable(url),
        state=str(state.resolve()),
        pid=os.getpid(),
        host=socket.gethostname(),
        started_at=time.time(),
    )
    folder, places = notes_folder(), [state / NOTE_IN_STATE]
    if folder is not None:
        places.append(folder / f"{uuid.uuid4().hex}.json")
        with suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sweep(folder)
    for place in places:
        with suppress(OSError):
            _write(place, note)
    try:
        yield
    finally:
        for place in places:
            if _read(place) == note:  # a learner that took over has left its own
                with suppress(OSError):
                    place.unlink()


def notes() -> list[LearnerNote]:
    """Of the learners of this user that may be running on this machine, the oldest first."""
    folder = notes_folder()
    places = [] if folder is None else _places(folder)
    found = [note for place in places if (note := _read(place)) is not None]
    running = [note for note in found if note.is_of_this_machine and not note.is_stale]
    return sorted(running, key=lambda note: note.started_at)


def note_of_state(state: Path) -> LearnerNote | None:
    """The one in a state's folder, stale or not."""
    return _read(state / NOTE_IN_STATE)


def _sweep(folder: Path) -> None:
    for place in _places(folder):
        note = _read(place)
        if note is not None and note.is_stale:
            with suppress(OSError):
                place.unlink()


def _places(folder: Path) -> list[Path]:
    try:
        return sorted(folder.glob("*.json"))
    except OSError:
        return []


def _write(place: Path, note: LearnerNote) -> None:
    """Whole or not at all; whether it survives a power cut does not matter, its learner does not."""
    new = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        new.write_text(json.dumps(asdict(note), ensure_ascii=False), encoding="utf-8")
        new.replace(place)
    finally:
        new.unlink(missing_ok=True)


def _read(place: Path) -> LearnerNote | None:
    """None: there is none, or it is none of ours."""
    try:
        document: Any = json.loads(place.read_text(encoding="utf-8"))
        note = LearnerNote(**{field.name: document[field.name] for field in fields(LearnerNote)})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    texts = (note.stream, note.branch, note.url, note.state, note.host)
    are_ours = isinstance(note.pid, int) and isinstance(note.started_at, int | float)
    return note if are_ours and all(isinstance(text, str) for text in texts) else None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _reachable(url: str) -> str:
    """A server that listens on all addresses is asked on this machine's own."""
    parts = urlsplit(url)
    if parts.hostname not in ("0.0.0.0", "::"):
        return url
    return urlunsplit(parts._replace(netloc=f"127.0.0.1:{parts.port}"))
