"""What the registry's aliases point to, as a file: whoever prunes snapshots knows it without asking the registry.

{"format_version": 1, "streams": {"pets": {"champion": "<SHA-256 of a snapshot>", ...}}}
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints

from model_store.durable_files import replace_file

# One name of an alias or a stream and its sum take some 300 bytes.
_MAX_BYTES = 1024 * 1024


class _Aliases(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    format_version: Literal[1]
    streams: dict[str, dict[str, Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]]]


def write_aliases(file: Path, streams: Mapping[str, Mapping[str, str]]) -> None:
    """{stream: {alias: SHA-256 of a snapshot}}, durably, in the place of what was there."""
    document = {"format_version": 1, "streams": {stream: dict(aliases) for stream, aliases in streams.items()}}
    replace_file(file, json.dumps(document, sort_keys=True).encode())


def read_aliases(file: Path) -> dict[str, dict[str, str]]:
    """Inverse of `write_aliases`. {} where there is no such file.

    `OSError` where it cannot be read, and where it says something else: what no alias points to may be deleted, so that
    not to know is another answer than none.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return {}
    try:
        if len(content) > _MAX_BYTES:
            raise ValueError(f"larger than {_MAX_BYTES} bytes")
        return _Aliases.model_validate(json.loads(content)).streams
    except (ValueError, RecursionError) as error:  # a ValidationError is a ValueError
        why = str(error).partition("\n")[0]
        raise OSError(errno.EIO, f"it does not say what the aliases point to ({why})", str(file)) from error
