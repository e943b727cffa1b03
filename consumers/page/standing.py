"""How a learner stands at one moment, in what nobody changes any more: what its page is drawn of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.evaluation.accuracy_course import AccuracyCourse
from pipeline.evaluation.forgetting import EvaluationReport
from pipeline.stream_learner import StreamLearner


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """`report` None: nothing was evaluated yet."""

    report: EvaluationReport | None
    course: AccuracyCourse
    replay: Mapping[str, int] = field(default_factory=dict)  # {class: samples in the reservoir}, of all known classes
    records_consumed: int = 0


def standing_of(learner: StreamLearner, report: EvaluationReport | None) -> Standing:
    """Of a live one, by the thread that learns: references and a count, whatever the length of its history."""
    return Standing(
        report=report,
        course=learner.forgetting.course,
        replay=dict(learner.replay_counts()),
        records_consumed=learner.records_consumed,
    )
