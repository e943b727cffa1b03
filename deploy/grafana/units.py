"""Grafana's names for the units of our metrics."""

from __future__ import annotations

from typing import Final

RATIO: Final = "percentunit"
SECONDS: Final = "s"
BYTES: Final = "bytes"
COUNT: Final = "short"  # of records, samples, classes: 12.3 K
NUMBER: Final = "none"  # of a version: 1234
RECORDS_PER_SECOND: Final = "recps"
REQUESTS_PER_SECOND: Final = "reqps"
PLAIN: Final = "short"  # a loss: it has no unit
