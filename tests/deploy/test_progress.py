"""Progress as a log shows it: lines with rate and time left."""

from __future__ import annotations

import pytest

from deploy import progress


def test_lines_come_now_and_then_with_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr("deploy.progress.time.monotonic", lambda: now[0])
    with progress.stage_progress() as show:
        for seconds, stage, done in [
            (0, "long", 500),  # goes on where an earlier one stopped: not part of the rate
            (2, "long", 900),
            (4, "long", 1_300),  # 800 in 4 s
            (5, "long", 1_500),
            (8, "long", 2_000),
            (8, "short", 0),
            (9, "short", 2_000),
        ]:
            now[0] = 100.0 + seconds
            show(stage, done, 2_000)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "long: 1,300 of 2,000 records, 200/s, 4 s left",  # 3.5
        "long: 2,000 of 2,000 records, 188/s, 0 s left",
    ]
