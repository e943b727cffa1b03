from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.discovery import subclasses_in
from pipeline.settings_section import Section


def test_concrete_subclasses_that_a_file_itself_defines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "found_by_discovery"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "base.py").write_text(
        "from abc import ABC, abstractmethod\n"
        "from pipeline.settings_section import Section\n"
        "class Between(Section, ABC):\n"
        "    @abstractmethod\n"
        "    def needed(self): ...\n"
    )
    (package / "two.py").write_text(
        "from found_by_discovery.base import Between\n"
        "class B(Between):\n"
        "    def needed(self): ...\n"
        "class A(B): ...\n"
        "class Other: ...\n"
    )
    (package / "one.py").write_text("from found_by_discovery.two import A, B\nclass C(A): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = [(file, cls.__name__) for file, cls in subclasses_in("found_by_discovery", Section)]
    assert found == [("one", "C"), ("two", "A"), ("two", "B")]
