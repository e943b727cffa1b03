from __future__ import annotations

from typing import cast

from deploy.demo_sizes import NetworkSize, NetworkSizes
from pipeline.learner import Learner
from pipeline.stream_learner import StepReport, StreamLearner


class SizedLearner:
    """Of a stream learner, what the time line looks at."""

    def __init__(self) -> None:
        self.learner: Learner | None = None
        self.records_consumed = 0
        self.is_relearning = False

    def becomes(self, records: int, sub_modules: int, parameters: int, *, relearning: bool = False) -> StreamLearner:
        class Sized:
            sub_modules_count = sub_modules
            parameters_count = parameters

        self.records_consumed, self.is_relearning = records, relearning
        self.learner = cast(Learner, Sized())
        return cast(StreamLearner, self)


def test_it_notes_what_changed_the_network() -> None:
    sizes, learner = NetworkSizes(), SizedLearner()
    step = cast(StepReport, None)
    sizes.stepped(cast(StreamLearner, learner), step)  # nothing was learnt yet
    sizes.stepped(learner.becomes(10, 1, 100), step)
    sizes.stepped(learner.becomes(20, 1, 100), step)
    sizes.stepped(learner.becomes(30, 1, 110), step)
    sizes.adopted(learner.becomes(20, 1, 110), "consolidation", None)
    sizes.stepped(learner.becomes(30, 1, 110, relearning=True), step)
    sizes.adopted(learner.becomes(40, 2, 150), "expansion", None)
    sizes.stepped(learner.becomes(50, 2, 150), step)
    assert sizes.over_time == [
        NetworkSize(after="begin", records=10, sub_modules=1, parameters=100),
        NetworkSize(after="new columns", records=30, sub_modules=1, parameters=110),
        NetworkSize(after="consolidation", records=20, sub_modules=1, parameters=110),
        NetworkSize(after="expansion", records=40, sub_modules=2, parameters=150),
    ]
    assert sizes.as_json[0] == {"after": "begin", "records": 10, "sub_modules": 1, "parameters": 100}
