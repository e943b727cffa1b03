"""One HTML document out of the small files of `parts/`: style, script and data stand in it, and nothing is fetched.

What is shown was written by anybody. It comes into the page as JSON alone, in which no character is left that ends a
script or begins a tag, and the script puts it into text nodes; the policy lets the browser run this very script and
fetch from this very server, whatever else may find its way in.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from functools import cache
from pathlib import Path

_PARTS = Path(__file__).parent / "parts"
_STYLES = ("theme.css", "layout.css", "picture.css")
# One scope, so that each may use those before it.
_SCRIPTS = (
    "words.js",
    "colours.js",
    "history.js",
    "time_axis.js",
    "elements.js",
    "curves.js",
    "heat_map.js",
    "event_lane.js",
    "picture.js",
    "tiles.js",
    "paged_table.js",
    "tables.js",
    "polling.js",
    "main.js",
)
_PLACE = re.compile(r"\{\{(\w+)\}\}")


def live_document(*, stream: str, branch: str) -> bytes:
    """It fetches /status and /history from where it came from."""
    return _document(title=_title(stream, branch), data="null", policy="")


def report_document(history: bytes, *, stream: str, branch: str) -> bytes:
    """It holds all that it shows: `history` is of `history_json`."""
    # a browser that opens a file sends no headers with it
    policy = f'<meta http-equiv="Content-Security-Policy" content="{security_policy(is_live=False)}">'
    return _document(title=_title(stream, branch), data=script_safe(history.decode()), policy=policy)


def security_policy(*, is_live: bool) -> str:
    """Content-Security-Policy: nothing but what stands in the document, and for a live one its own server's answers."""
    rules = [
        "default-src 'none'",
        f"script-src '{_sum(_script())}'",
        f"style-src '{_sum(_style())}'",
        "img-src data:",
        "connect-src 'self'" if is_live else "connect-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    if is_live:  # browsers take it from a header alone
        rules.append("frame-ancestors 'none'")
    return "; ".join(rules)


def script_safe(json_text: str) -> str:
    """The same JSON, with nothing in it that HTML or an old JavaScript would read as something else."""
    for character in "<>&\u2028\u2029":
        json_text = json_text.replace(character, f"\\u{ord(character):04x}")
    return json_text


def _document(*, title: str, data: str, policy: str) -> bytes:
    values = {"title": html.escape(title), "policy": policy, "style": _style(), "script": _script(), "data": data}
    # in one pass: what is put in is not looked at for further places
    return _PLACE.sub(lambda place: values[place[1]], _part("page.html")).encode()


def _title(stream: str, branch: str) -> str:
    return f"{stream} ({branch}) · Palimpsest" if branch != "main" else f"{stream} · Palimpsest"


@cache
def _style() -> str:
    return "\n" + "".join(_part(name) for name in _STYLES)


@cache
def _script() -> str:
    script = "\n'use strict';\n(() => {\n" + "".join(_part(name) for name in _SCRIPTS) + "})();\n"
    assert "</script" not in script.lower(), "it would end there"
    assert "<!--" not in script, "HTML would read a comment"
    return script


@cache
def _part(name: str) -> str:
    return (_PARTS / name).read_text(encoding="utf-8")


def _sum(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
