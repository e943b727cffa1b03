"""One document: complete, from nowhere else, and nothing that is shown can become part of it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from consumers.page import document
from consumers.page.document import live_document, report_document, script_safe, security_policy

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "]]>",
    "&lt;b&gt;",
    '" onload="alert(1)',
    "'; alert(1); '",
    "\u2028\u2029",
    "{{script}}{{data}}",
    "\\u003c/script>",
]


class Parsed(HTMLParser):
    """Scripts and styles as a browser finds them, and every attribute."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.texts: dict[str, list[str]] = {"script": [], "style": [], "title": []}
        self.attributes: list[tuple[str, str, str]] = []
        self._open: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag in self.texts:
            self._open = tag
            self.texts[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._open:
            self._open = None

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self.texts[self._open][-1] += data


def allowed_sum(policy: str, directive: str) -> str:
    match = re.search(rf"{directive} '(sha256-[^']+)'", policy)
    assert match is not None, policy
    return match[1]


def sum_of(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


@pytest.mark.parametrize("is_live", [True, False])
def test_the_policy_allows_this_script_and_this_style_and_nothing_else(is_live: bool) -> None:
    text = (
        live_document(stream="s", branch="main") if is_live else report_document(b"{}", stream="s", branch="main")
    ).decode()
    page = Parsed(text)
    policy = security_policy(is_live=is_live)
    data, script = page.texts["script"]
    (style,) = page.texts["style"]
    assert allowed_sum(policy, "script-src") == sum_of(script)
    assert allowed_sum(policy, "style-src") == sum_of(style)
    assert data == ("null" if is_live else "{}")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    stands_in_it = [value for tag, name, value in page.attributes if (tag, name) == ("meta", "content")]
    assert (policy in stands_in_it) is not is_live


def test_nothing_comes_from_elsewhere() -> None:
    page = Parsed(live_document(stream="s", branch="main").decode())
    links = [value for _, name, value in page.attributes if name in ("src", "href", "action", "srcset", "data")]
    assert links
    assert all(link.startswith(("data:", "#")) for link in links), links
    script, style = page.texts["script"][1], page.texts["style"][0]
    assert "url(" not in style
    assert "@import" not in style
    hosts = set(re.findall(r"(?:https?:)?//([a-z0-9.-]+\.[a-z]+)", script))
    assert hosts <= {"www.w3.org"}, "the name of SVG is no address"
    for name in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "setTimeout('",
    ):
        assert name not in script
    assert not [name for _, name, _ in page.attributes if name == "style" or name.startswith("on")]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_shown_stays_data(text: str) -> None:
    history = json.dumps({"name": text}, ensure_ascii=False).encode()
    page = Parsed(report_document(history, stream=text, branch="main").decode())
    data, script = page.texts["script"]
    assert json.loads(data) == {"name": text}
    assert allowed_sum(security_policy(is_live=False), "script-src") == sum_of(script)
    assert page.texts["title"] == [f"{text} · Palimpsest"]


def test_script_safe_is_the_same_json() -> None:
    value = {"a<b>&c\u2028": ["</script>", {"&": "\u2029"}]}
    text = script_safe(json.dumps(value, ensure_ascii=False))
    assert json.loads(text) == value
    assert not set("<>&\u2028\u2029") & set(text)


def test_every_part_is_used() -> None:
    """A file that nobody puts in would be dead, or its page broken."""
    files = {path.name for path in document._PARTS.iterdir()}
    assert files == {"page.html", *document._STYLES, *document._SCRIPTS}
