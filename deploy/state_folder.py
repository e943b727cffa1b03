"""The state folder before anybody works in it."""

from __future__ import annotations

from pathlib import Path

from model_store.durable_files import make_folder
from pipeline.user_error import UserError


def make_state_folder(state: Path) -> None:
    """Make it where it is not there. Raises `UserError` where nothing can be written to it."""
    try:
        make_folder(state)  # durable: the snapshots in it will be
        probe = state / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to state folder {state}: {error.strerror}; give another --state") from None
