"""A restructuring that cannot be done well is refused: nothing of it is adopted, and the learner goes on as it is."""

from __future__ import annotations

from pipeline.user_error import UserError


class Refused(UserError):
    """Too few rows, no new class, a teacher of another shape. One line: what is wrong, and the way out."""
