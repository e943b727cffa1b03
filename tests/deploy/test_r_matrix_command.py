from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from deploy.embedded_kafka import EmbeddedKafka
from deploy.settings import load_settings
from pipeline.codec.record_decoder import RecordDecoder
from pipeline.evaluation.hold_out import HoldOut
from pipeline.sample import Sample
from pipeline.stream_learner import StreamLearner
from producers.sample_stream import SampleStream
from tests.deploy.command_line import palimpsest
from tests.deploy.streams import send, settings_file

pytestmark = pytest.mark.kafka


def by_hand(stream: SampleStream, file: Path) -> tuple[list[str], list[list[float]]]:
    """R, from memory: for each row a learner of its own learns the log up to the task's last record."""
    settings = load_settings(file).learner
    decoder = RecordDecoder(settings.input)
    log = [decoder.decode(record) for record in stream.log("any")]
    samples = [decoded.sample for decoded in log]
    assert all(isinstance(sample, Sample) for sample in samples)
    tasks = list(dict.fromkeys(sample.task for sample in samples if sample is not None))
    hold_out = HoldOut(settings.hold_out)
    judges: dict[str, dict[str, Sample]] = {str(task): {} for task in tasks}
    for sample in samples:
        assert sample is not None
        if hold_out.chooses(sample):
            judges[str(sample.task)].setdefault(str(sample.subject), sample)
    rows = []
    for task in tasks:
        last = max(number for number, sample in enumerate(samples) if sample is not None and sample.task == task)
        learner = StreamLearner(settings)
        # A task is judged at the first end of a batch after its last record; the last of all, when all was learnt.
        for number, decoded in enumerate(log):
            if learner.add(decoded):
                learner.step(learner.assembler.take())
            if number == last:
                break
        if task == tasks[-1]:
            learner.flush()
        row = []
        for judge in judges.values():
            x = np.stack([sample.x for sample in judge.values()])
            right = [
                column == learner.class_columns.get(str(sample.label), -1)
                for column, sample in zip(learner.predict_columns(x), judge.values(), strict=True)
            ]
            row.append(float(np.mean(right)))
        rows.append(row)
    return [str(task) for task in tasks], rows


def test_r_is_what_learning_up_to_each_task_gives(
    kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path
) -> None:
    stream = send(kafka_broker, stream_name, 700)
    file = settings_file(tmp_path, kafka_broker)
    out = tmp_path / "new" / "r.json"
    done = palimpsest("r-matrix", "--stream", stream_name, "--settings", file, "--json", out)
    assert done.returncode == 0, done.stderr
    written = json.loads(out.read_text())
    tasks, R = by_hand(stream, file)
    assert written["tasks"] == tasks == ["0", "1", "2", "3", "4"]
    assert written["R"] == R
    last = np.array(R[-1])
    assert written["ACC"] == pytest.approx(last.mean())
    assert written["BWT"] == pytest.approx(np.mean([R[4][task] - R[task][task] for task in range(4)]))
    assert written["FWT"] == pytest.approx(
        np.mean([R[task - 1][task] - written["random"][task] for task in range(1, 5)])
    )
    # What a person sees says the same.
    header, *lines, figures = done.stdout.splitlines()
    assert header.split() == ["after", *tasks]
    assert [line.split()[0] for line in lines] == tasks
    shown = [[float(word) for word in line.split()[1:]] for line in lines]
    np.testing.assert_allclose(shown, R, atol=5e-4)
    assert len({len(line) for line in (header, *lines)}) == 1, "in columns"
    assert figures == f"ACC {written['ACC']:.4f}   BWT {written['BWT']:+.4f}   FWT {written['FWT']:+.4f}"


def test_a_file_that_cannot_be_written_is_told_before_the_log_is_read(
    kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    file = settings_file(tmp_path, kafka_broker)
    out = tmp_path / "file" / "r.json"
    done = palimpsest("r-matrix", "--stream", stream_name, "--settings", file, "--json", out)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"palimpsest: cannot write {out}: ")
