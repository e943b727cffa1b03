"""The state folder before anybody works in it, and where it is by default."""

from __future__ import annotations

from pathlib import Path

from consumers.topics import MAIN_BRANCH
from model_store.durable_files import make_folder
from model_store.snapshot_store import SnapshotStore
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


def usual_state(stream: str) -> Path | None:
    """`runs/NAME`, where a learner of this stream has written its state there; None: it is elsewhere, if anywhere."""
    state = Path("runs") / stream
    snapshots = state / "snapshots"
    entries = SnapshotStore(snapshots).entries() if snapshots.is_dir() else []
    whose = (entries[-1].facts.get("stream"), entries[-1].facts.get("branch")) if entries else None
    return state if whose == (stream, MAIN_BRANCH) else None
