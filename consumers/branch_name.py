"""What a branch may be called."""

from __future__ import annotations

from consumers import topics
from pipeline.user_error import UserError


def check_branch_name(branch: str) -> None:
    """It becomes part of a transactional id and a group's name, as the stream's name does. Raises `UserError`."""
    try:
        topics.check_stream_name(branch)
    except UserError:
        raise UserError(
            f"branch name {branch!r} is not 1 to 235 letters, digits, '.', '_' and '-'; choose another --branch"
        ) from None
