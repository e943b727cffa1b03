"""Debian's Chromium, without a window, driven by Playwright; and what a page does in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.browser.watched_page import OpenPage, WatchedPage
from tests.system_package import require_module, require_program

if TYPE_CHECKING:
    from playwright.sync_api import Browser

DESKTOP = 1200


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Nothing is downloaded: it is the system's own."""
    program = require_program("chromium", package="chromium")
    playwright = require_module("playwright.sync_api", extra="test")
    with playwright.sync_playwright() as driver:
        # root may not use Chromium's sandbox; what is opened here is ours
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Browser) -> Iterator[OpenPage]:
    """`open_page(url, width=..., scheme="dark")`; each is closed at the end."""
    opened: list[WatchedPage] = []

    def open_it(url: str, *, width: int = DESKTOP, scheme: str = "light", has_clock: bool = False) -> WatchedPage:
        page = WatchedPage(chromium, url, width=width, scheme=scheme, has_clock=has_clock)
        opened.append(page)
        return page

    yield open_it
    for page in opened:
        page.close()
