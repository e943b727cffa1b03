"""ARCHITECTURE.md's map has a line for every file, and it is what the file says of itself.

`python -m tests.test_architecture_map` writes it anew.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("producers", "pipeline", "consumers", "model_store", "deploy", "benchmarks")
SECTION = re.compile(r"(## The map\n\n).*?(?=\n## )", re.DOTALL)


def the_map() -> str:
    """A block a folder, a line a file: its name and the first sentence of its docstring."""
    blocks = []
    for package in PACKAGES:
        folders = sorted({path.parent for path in (ROOT / package).rglob("*.py")})
        for folder in folders:
            lines = [
                f"      {path.name:<26}{first_line(path)}" for path in sorted(folder.glob("*.py")) if first_line(path)
            ]
            if lines:
                blocks.append("\n".join([f"    {folder.relative_to(ROOT).as_posix()}/", *lines]))
    return "\n\n".join(blocks) + "\n"


def first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return "" if docstring is None else docstring.split("\n\n")[0].replace("\n", " ")


def test_every_file_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.stat().st_size and not first_line(path)
    ]
    assert silent == []


def test_the_map_is_true() -> None:
    section = SECTION.search((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))
    assert section is not None
    assert section[0].removeprefix(section[1]) == the_map(), "renew it with `python -m tests.test_architecture_map`"


if __name__ == "__main__":
    document = ROOT / "ARCHITECTURE.md"
    document.write_text(
        SECTION.sub(lambda match: match[1] + the_map(), document.read_text(encoding="utf-8")), encoding="utf-8"
    )
