"""Asks running learners what they do: by their addresses, or found by stream, branch and state."""

from __future__ import annotations

import http.client
import ipaddress
import urllib.error
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ValidationError

from consumers.status_answer import StatusAnswer
from deploy.printable import printable
from deploy.running_learners import note_of_state, notes
from pipeline.user_error import UserError

USUAL_URL = "http://127.0.0.1:9095"
# It answers at once, whatever it does; a machine that pages may need a while.
_ANSWER_SECONDS = 3.0
_MOST_ANSWER_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """An address that led to no such learner."""

    where: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Who answered, and what was tried besides."""

    answers: tuple[StatusAnswer, ...]
    tried: tuple[Tried, ...]


def find_learners(
    *, stream: str | None = None, branch: str | None = None, state: Path | None = None, url: str | None = None
) -> Found:
    """All that fit, the order of notes. None of them: any.

    With `url` it is asked alone. Else whoever left a note, in `state` where that is given, and the usual address.
    """
    tried: list[Tried] = []
    if url is not None:
        addresses = {checked_url(url): "--url"}
    else:
        addresses = _addresses(stream, branch, state, tried)
    answers: list[StatusAnswer] = []
    with ThreadPoolExecutor(max_workers=8) as threads:  # a few that do not answer are waited for together
        said = list(threads.map(_asked, addresses))
    for (address, where), answer in zip(addresses.items(), said, strict=True):
        if isinstance(answer, str):
            tried.append(Tried(where=f"{address} ({where})", why=answer))
        elif (stream or answer.stream, branch or answer.branch) != (answer.stream, answer.branch):
            who = f"the learner of stream {answer.stream!r}, branch {answer.branch!r} answers there"
            tried.append(Tried(where=f"{address} ({where})", why=who))
        else:
            answers.append(answer)
    return Found(answers=tuple(answers), tried=tuple(tried))


def checked_url(url: str) -> str:
    """Without a path, which may be that of the metrics. Raises `UserError` where it is none."""
    with suppress(ValueError):
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return f"{parts.scheme}://{parts.netloc}"
    raise UserError(f"--url {url!r} is no address of a learner; it is like {USUAL_URL}")


def _addresses(stream: str | None, branch: str | None, state: Path | None, tried: list[Tried]) -> dict[str, str]:
    """{address: where it stood}."""
    addresses: dict[str, str] = {}
    if state is not None:
        note = note_of_state(state)
        if note is None:
            tried.append(Tried(where=str(state), why="no learner has left its address there"))
        elif note.is_stale:
            tried.append(Tried(where=str(state), why=f"its learner (process {note.pid}) has ended"))
        elif not note.is_of_this_machine:
            tried.append(Tried(where=str(state), why=f"its learner runs on {note.host}: ask there, or give --url"))
        elif note.state != str(state.resolve()):
            why = f"it is a copy of {printable(note.state)}, whose learner runs"
            tried.append(Tried(where=str(state), why=why))
        else:
            addresses[note.url] = f"left in {state}"
        return addresses
    for note in notes():
        if (stream or note.stream, branch or note.branch) == (note.stream, note.branch):
            addresses.setdefault(note.url, f"left by process {note.pid}")
    addresses.setdefault(USUAL_URL, "the usual address")
    return addresses


def _asked(url: str) -> StatusAnswer | str:
    """What is answered, or why nothing is."""
    # What a proxy says of our own machine is not what our machine says.
    handlers: Iterable[urllib.request.BaseHandler] = (
        [urllib.request.ProxyHandler({})] if _is_of_this_machine(url) else []
    )
    try:
        with urllib.request.build_opener(*handlers).open(f"{url}/status", timeout=_ANSWER_SECONDS) as answer:
            body = answer.read(_MOST_ANSWER_BYTES)
        return StatusAnswer.model_validate_json(body)
    except urllib.error.HTTPError as error:
        with error:
            return f"what answers there is no learner (status {error.code})"
    except urllib.error.URLError as error:
        reason = error.reason
        why = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
        return f"no answer: {why}"
    except (OSError, http.client.HTTPException) as error:
        return f"no answer: {error}"
    except (ValidationError, ValueError):
        return "what answers there is no learner"


def _is_of_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
