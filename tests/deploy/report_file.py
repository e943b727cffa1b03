"""What a report holds, read as a browser would find it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any


def embedded(file: Path) -> dict[str, Any]:
    """The data that it draws."""
    text = file.read_text(encoding="utf-8")
    (data,) = re.findall(r'<script type="application/json" id="embedded">(.*?)</script>', text, re.DOTALL)
    told = json.loads(data)
    assert isinstance(told, dict)
    return told
