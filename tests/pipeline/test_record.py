"""A record as it lies in the log."""

from __future__ import annotations

import pytest

from pipeline.record import Record


@pytest.mark.parametrize(
    ("key", "value", "headers", "size_bytes"),
    [
        (None, None, (), 0),
        (b"key", b"value", (), 8),
        (None, None, (("name", b"12345"), ("null", None), ("\u00e9", b"")), 4 + 5 + 4 + 2),
    ],
)
def test_its_size_is_all_that_somebody_wrote(
    key: bytes | None, value: bytes | None, headers: tuple[tuple[str, bytes | None], ...], size_bytes: int
) -> None:
    assert Record("t", 0, 0, value, key, headers).size_bytes == size_bytes
