"""Which of a record's headers count."""

from __future__ import annotations

import pytest

from pipeline.codec.record_headers import last_headers


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ([], {}),
        ([("ce_id", b"1"), ("CE_ID", b"2")], {"ce_id": b"2"}),
        ([("Ce_Id", b"2"), ("ce_id", None)], {"ce_id": b"2"}),
        ([("ce_id", None)], {}),
        ([("ce_id", b"1"), ("ce_id", b"")], {"ce_id": b""}),
        ([("Content-Type", b"\xff"), ("x", b"")], {"content-type": b"\xff", "x": b""}),
    ],
)
def test_any_case_the_last_and_only_with_a_value(
    headers: list[tuple[str, bytes | None]], found: dict[str, bytes]
) -> None:
    assert last_headers(headers) == found
