"""Which headers of a record count: names in any case, of a repeated one the last, and none without a value."""

from __future__ import annotations

from collections.abc import Iterable


def last_headers(headers: Iterable[tuple[str, bytes | None]]) -> dict[str, bytes]:
    """By name in lower case; the last of a name counts (as in Kafka's `Headers.lastHeader`), null values do not."""
    return {name.lower(): value for name, value in headers if value is not None}
