"""The selectors of a PromQL expression: what has to be there for the expression to have something to say.

An alert's expression returns nothing while all is well, and nothing, too, where a metric was renamed. So a test looks
at what it is made of: every metric with the labels that it asks for, without functions, comparisons and ranges.
"""

from __future__ import annotations

import re

# Our metrics, those of any process, Prometheus' own, and recorded ones (which have colons).
_SELECTOR = re.compile(r"(?<![\w:])((?:palimpsest_|process_)\w+|up|\w+:[\w:]+)(?![\w:(])(\{[^}]*\})?")


def selectors(expression: str) -> list[str]:
    """Each once, as it stands there."""
    return sorted({"".join(found) for found in _SELECTOR.findall(expression)})
