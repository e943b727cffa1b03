"""The benchmark of a consolidation in a stream, on few records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.consolidated_stream import VARIANTS, main


def test_each_kind_has_both_figures(mnist: Path, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    arguments = ["--records", "6000", "--buffer", "100", "--data-root", str(mnist), "--json", str(file)]
    main([*arguments, "--seeds", "1"])
    result = json.loads(file.read_text())
    ((_, rows),) = [(run["seed"], run["rows"]) for run in result["runs"]]
    assert list(rows) == ["no adoption", *VARIANTS]
    for row in rows.values():
        assert 0.3 < row["then"] <= 1.0
        assert 0.3 < row["end"] <= 1.0
    assert rows["defaults"]["then"] > rows["plain DMC"]["then"]
    assert result["command"].startswith("python -m benchmarks.consolidated_stream")


def test_too_short_a_stream_is_said(mnist: Path) -> None:
    with pytest.raises(AssertionError, match="the stream is too short"):
        main(["--records", "100", "--data-root", str(mnist)])
