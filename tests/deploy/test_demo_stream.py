"""In which parts the demo sends its stream, and what becomes of a part that cannot be sent."""

from __future__ import annotations

import pytest

from consumers.kafka_settings import KafkaSettings
from deploy import demo_stream
from deploy.demo_stream import DemoStream
from pipeline.user_error import UserError
from producers.dataset_source import DatasetOptions
from producers.datasets import open_dataset
from producers.sample_producer import ProduceReport
from producers.sample_stream import SampleStream
from producers.schedules.blurred import Blurred

_RECORDS = 2_000


@pytest.fixture
def stream() -> SampleStream:
    return SampleStream(
        open_dataset("digits", DatasetOptions()), Blurred(), seed=0, records=_RECORDS, unlabelled_share=0.15
    )


def demo(stream: SampleStream) -> DemoStream:
    return DemoStream(stream, name="demo", kafka=KafkaSettings(bootstrap_servers="127.0.0.1:1"))


def test_a_part_ends_before_the_classes_of_the_next_one(stream: SampleStream, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[range] = []

    def sends(_: SampleStream, *, numbers: range, **__: object) -> ProduceReport:
        sent.append(numbers)
        return ProduceReport(labelled=len(numbers) - 1, unlabelled=1, total=len(numbers), seconds=0.1, stopped=False)

    monkeypatch.setattr(demo_stream, "produce", sends)
    parts = demo(stream)
    while parts.begin_next():
        parts.wait()
    assert [number for part in sent for number in part] == list(range(_RECORDS))
    first, second = sent
    assert set(stream.step_N[first.start : first.stop]) == {0, 1, 2}
    assert stream.step_N[second.start] == 3
    assert (parts.labelled, parts.unlabelled) == (_RECORDS - 2, 2)


def test_what_cannot_be_sent_is_raised_where_somebody_waits(
    stream: SampleStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> ProduceReport:
        raise UserError("the brokers are away")

    monkeypatch.setattr(demo_stream, "produce", fails)
    parts = demo(stream)
    assert parts.begin_next()
    for _ in range(2):
        with pytest.raises(UserError, match="the brokers are away"):
            parts.wait()
    assert not parts.begin_next(), "there is more, and it is not tried"
