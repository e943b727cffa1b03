"""A page in a browser, and all that it asked for and complained of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast
from urllib.parse import urlsplit

from tests.system_package import require_module

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator

HEIGHT = 900


class WatchedPage:
    """One tab. What a test expects to go wrong it takes out of `complaints`."""

    def __init__(self, browser: Browser, url: str, *, width: int, scheme: str, has_clock: bool) -> None:
        """`scheme`: light or dark. `has_clock`: time in it stands still but for `page.clock`."""
        context: dict[str, Any] = {"viewport": {"width": width, "height": HEIGHT}, "color_scheme": scheme}
        self.page = browser.new_page(**context)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self._complain(message.type, message.text))
        self.page.on("pageerror", lambda error: self._complain("error", str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        if has_clock:
            self.page.clock.install()
        self.page.goto(url)

    def _complain(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(f"{kind}: {text}")

    def close(self) -> None:
        self.page.close()

    @property
    def hosts(self) -> set[str]:
        """That it asked for anything."""
        return {urlsplit(url).netloc for url in self.requests}

    def js(self, expression: str, argument: object = None) -> Any:
        return self.page.evaluate(expression, argument)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def rows(self, selector: str) -> list[list[str]]:
        """The cells of a table's body, as they are shown."""
        return cast(
            "list[list[str]]",
            self.js(
                "selector => [...document.querySelectorAll(`${selector} tbody tr`)]"
                ".map(row => [...row.children].map(cell => cell.innerText))",
                selector,
            ),
        )

    def tiles(self) -> dict[str, tuple[str, str]]:
        """{title: (figure, what stands below it)}, of those that are shown."""
        shown = self.js(
            "() => [...document.querySelectorAll('#tiles > div:not([hidden])')].map(tile =>"
            " [tile.querySelector('dt').innerText, tile.querySelector('.value').innerText,"
            " tile.querySelector('.beside').innerText])"
        )
        return {title: (figure, beside) for title, figure, beside in shown}

    def plot(self, name: str) -> Locator:
        return self.page.locator(f"#{name}")

    def accessibility_faults(self) -> list[str]:
        """By axe-core, the rules of WCAG 2.2 AA and its best practices: what is wrong, and where."""
        axe = require_module("axe_playwright_python.sync_playwright", extra="test").Axe()
        tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
        found = axe.run(self.page, options={"runOnly": tags}).response
        assert found["passes"], "it has looked"
        return [
            f"{fault['id']}: {node['target']}: {node.get('failureSummary', '')}"
            for fault in found["violations"]
            for node in fault["nodes"]
        ]

    def scrolls_sideways(self) -> bool:
        return bool(self.js("() => document.documentElement.scrollWidth > window.innerWidth"))


class OpenPage(Protocol):
    """Of the fixture `open_page`."""

    def __call__(self, url: str, *, width: int = ..., scheme: str = ..., has_clock: bool = ...) -> WatchedPage: ...
