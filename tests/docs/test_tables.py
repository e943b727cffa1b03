"""What the pages list is what the code has: exit codes, settings, reasons, headers, codecs, metrics, benchmarks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from consumers.dead_letters import ADDED_HEADERS
from deploy import exit_codes
from deploy.settings import Settings
from pipeline.codec import payload_codecs
from pipeline.sample import DeadLetterReason
from tests.docs.pages import ROOT, page_names, page_text


def first_cells(page: str, of: str = "") -> list[str]:
    """What stands in backquotes in the first cell of each row of the tables, of the one with this heading or of all."""
    text = page_text(page)
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    rows = [row for table in tables if of in table.split("\n", 1)[0] for row in table.splitlines()[2:]]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row.split(" | ")[0])]


def test_every_exit_code_has_its_line() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \|", page_text("docs/operator/exit-codes.md"), re.MULTILINE)
    told = {int(code) for row in rows for code in row.split(",")}
    assert {value for name, value in vars(exit_codes).items() if name.isupper() and isinstance(value, int)} <= told
    assert {0, 1, 2} <= told


def test_every_reason_has_its_line_and_no_other() -> None:
    assert first_cells("docs/stream/dead-letters.md", of="| reason |") == [str(reason) for reason in DeadLetterReason]


def test_every_header_of_a_dead_letter_is_named() -> None:
    assert set(first_cells("docs/stream/dead-letters.md", of="| header |")) == ADDED_HEADERS


def test_every_content_type_is_named() -> None:
    assert set(first_cells("docs/stream/codecs.md")) == set(payload_codecs())


def test_every_benchmark_is_named() -> None:
    benchmarks = {
        file.stem
        for file in (ROOT / "benchmarks").glob("*.py")
        if "ArgumentParser" in file.read_text() and "__main__" in file.read_text()
    }
    assert set(first_cells("docs/research/benchmarks.md")) == benchmarks - {"results"}


@pytest.mark.parametrize("page", page_names())
def test_settings_are_there(page: str) -> None:
    sections = "|".join(Settings.model_fields)
    for path in re.findall(rf"`((?:{sections})\.[a-z_.]+)`", page_text(page)):
        if path.endswith((".json", ".yaml", ".paused")):  # a file, or a value of the chart
            continue
        place: Any = Settings()
        for name in path.split("."):
            assert isinstance(place, BaseModel), f"{page}: {path}"
            assert name in type(place).model_fields, f"{page}: {path}"
            place = getattr(place, name)


def test_some_settings_are_named() -> None:
    assert len(re.findall(r"`[a-z]+\.[a-z_]+`", "".join(page_text(page) for page in page_names()))) > 30


CODE = "".join(file.read_text() for folder in ("consumers", "deploy") for file in (ROOT / folder).glob("*.py"))


@pytest.mark.parametrize("page", [page for page in page_names() if page.startswith(("docs/operator/", "docs/stream/"))])
def test_metrics_are_there(page: str) -> None:
    for name in set(re.findall(r"(?<!:)\bpalimpsest_([a-z_]+[a-z])\b", page_text(page))):
        if name == "runbook":  # an annotation of alerts
            continue
        # Some are put together from "shadow_" and what it is of; a family's series carry an ending.
        base = re.sub(r"_(total|bucket|count|sum|created)\Z", "", name).removeprefix("shadow_")
        assert re.search(rf"[\"_]{base}(_total)?\"", CODE), f"{page}: palimpsest_{name}"


def test_the_pages_lie_in_the_three_parts() -> None:
    parts = {"operator", "stream", "research"}
    for page in page_names()[1:]:
        assert Path(page).parent.name in parts or page in ("docs/README.md", "docs/experiments.md"), page
