"""What the stream learner tells its trigger, on real digits."""

from __future__ import annotations

from pipeline.restructuring.trigger import Kind, Request
from pipeline.settings import LearnerSettings
from pipeline.stream_learner import StreamLearner
from tests.pipeline.restructuring.digits_stream import NEW, digits_stream, settings

_EVERY = 70  # records from one evaluation to the next


def asking(expand_below: float | None, **more: object) -> LearnerSettings:
    """Four new classes, of which the last comes within the first records, ask for a job 100 records later."""
    asks = {"new_classes": 4, "settle_records": 100, "rest_records": 10_000, "expand_below": expand_below}
    # a burst that ends is a reason to evaluate too: none does
    evaluation = {"every_records": _EVERY, "min_class_samples": 5, "burst_records": 10_000}
    return settings(restructuring=asks, evaluation=evaluation, **more)


def requests(learner: StreamLearner, stop_every: int | None = None) -> list[Request]:
    """Of the whole stream. `stop_every`: so many steps, and another learner goes on with the state, after the one that
    stopped has looked at its hold-outs."""
    found = []
    steps = 0
    for decoded in digits_stream().all:
        if learner.add(decoded):
            report = learner.step(learner.assembler.take())
            found += [report.request] if report.request is not None else []
            steps += 1
            if stop_every is not None and not steps % stop_every:
                state = learner.state()
                learner.evaluate_unrecorded()
                pending, learner = learner, StreamLearner(learner.settings)
                assert not pending.assembler.pending_records
                learner.load_state(state)
    return found


def test_it_asks_after_the_evaluation_that_judges() -> None:
    (at_once,) = requests(StreamLearner(asking(None)))
    assert at_once.kind is Kind.CONSOLIDATION
    learner = StreamLearner(asking(1.0))
    (request,) = requests(learner)
    assert request.kind is Kind.EXPANSION
    next_evaluation = -(-at_once.at_records // _EVERY) * _EVERY
    assert next_evaluation <= request.at_records < next_evaluation + learner.settings.batch_size
    (better,) = requests(StreamLearner(asking(0.0)))
    assert better == Request(reason=at_once.reason, at_records=request.at_records, kind=Kind.CONSOLIDATION)


def test_stopped_and_looked_at_it_asks_at_the_same_record() -> None:
    """What is evaluated at a stop is nobody's to choose, and decides nothing."""
    (expected,) = requests(StreamLearner(asking(1.0)))
    assert requests(StreamLearner(asking(1.0)), stop_every=1) == [expected]
    assert requests(StreamLearner(asking(1.0)), stop_every=7) == [expected]


def test_where_nothing_is_held_out_it_consolidates() -> None:
    (request,) = requests(StreamLearner(asking(1.0, hold_out={"share": 0.0})))
    assert request.kind is Kind.CONSOLIDATION


def test_classes_with_too_few_held_out_samples_speak_for_nothing() -> None:
    learner = StreamLearner(asking(1.0).model_copy(update={"evaluation": _many_wanted()}))
    (request,) = requests(learner)
    assert request.kind is Kind.CONSOLIDATION
    assert all(learner.hold_out.count(name) < 100 for name in NEW)


def _many_wanted() -> object:
    return asking(1.0).evaluation.model_copy(update={"min_class_samples": 100})
