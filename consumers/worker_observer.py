"""Who hears what the worker beside a learner does."""

from __future__ import annotations

from typing import Literal

from pipeline.restructuring.trigger import Kind

JobOutcome = Literal["offered", "refused", "failed"]  # failed: by something outside of it; it is tried again
PromotionOutcome = Literal["promoted", "refused", "failed"]  # failed: nothing could be judged; it is looked at again


class WorkerObserver:
    """Each overrides what it cares for. Its methods must not raise and not block."""

    def turned(self) -> None:
        """The loop has turned, or the job under way has made a step."""

    def job_begun(self, kind: Kind, broken_off: int) -> None:
        """One begins that so many processes before this one did not survive."""

    def job_ended(self, kind: Kind, outcome: JobOutcome | None, seconds: float) -> None:
        """After so long; None: it was stopped, or put off, and goes on later."""

    def promotion_ended(self, outcome: PromotionOutcome) -> None:
        """A challenger was judged by the worker itself, or could not be."""
