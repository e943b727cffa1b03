"""The end of the demo: its versions are promoted, and a predictor answers the records without a label.

The first version is promoted with nothing to compare it with; the newest then has to be better than it on the same
hold-outs, as `palimpsest promote` would have it.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from consumers import topics
from consumers.answers import parse_answer
from consumers.kafka_record_source import KafkaRecordSource
from consumers.kafka_settings import KafkaSettings
from consumers.record_source import read_records
from consumers.topics import topic_partitions
from deploy.predicting import open_predictor
from deploy.predictor_console import PredictorConsole
from deploy.promoting import PromotionReport, promote
from deploy.promotion_lines import print_report
from deploy.settings import Settings
from model_store.promotion_settings import PromotionSettings
from model_store.registry import RegisteredVersion, Registry
from pipeline.record import Record
from pipeline.state import Json

_WHO = "the demo"
_SHOWN = 3  # answers
_IDLE_SECONDS = 1.0
# Of the demo's digits some 25 of a class are held out: one of them more or less is 4 %.
_MARGINS = {"worst_class_margin": 0.1, "forgetting_margin": 0.05}


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What came of it."""

    promoted: PromotionReport
    answers: Sequence[Record]  # by the version that was promoted, in the order of the log

    @property
    def as_json(self) -> dict[str, Json]:
        promoted, verdict = self.promoted, self.promoted.verdict
        labels = Counter(str(label) for label in map(_label, self.answers))
        return {
            "promoted": {
                "version": promoted.version,
                "before": promoted.champion,
                "passed": verdict is not None and verdict.passed,
                "figures": {} if verdict is None else verdict.figures,
            },
            "answers": {"requests": len(self.answers), "labels": dict(sorted(labels.items()))},
        }


def serve(
    stream: str, registry: Registry, versions: Sequence[RegisteredVersion], *, out: Path, settings: Settings
) -> Served:
    """Promote, answer all of `<stream>.unlabelled`, and say so."""
    if settings.promotion == PromotionSettings():  # what a person has set otherwise stays
        settings = settings.model_copy(update={"promotion": PromotionSettings.model_validate(_MARGINS)})
    _say(f"\npromoting: version {versions[0].version} first, which nothing is compared with, then the newest:")
    report = _promoted(registry, stream, versions[0].version, out, settings)
    if versions[-1].version != versions[0].version:
        report = _promoted(registry, stream, versions[-1].version, out, settings)
    print_report(report, forced=False)
    asked, answered = topics.unlabelled(stream), topics.predictions(stream)
    _say(f"\nanswering the records of {asked} on {answered}:")
    settings = settings.model_copy(update={"predictor": settings.predictor.model_copy(update={"port": 0})})
    with open_predictor(
        stream=stream,
        role="champion",
        source=asked,
        output=answered,
        models=out / "models",
        instance="demo",
        settings=settings,
        console=PredictorConsole(sys.stdout, as_json=False),
        stop=threading.Event(),
    ) as opened:
        done = opened.predictor.run(threading.Event(), until_idle_seconds=_IDLE_SECONDS)
    answers = _read(settings.kafka, answered)
    _say(f"{done.answered:,} requests, each answered once; such as")
    for answer in [answer for answer in map(parse_answer, answers) if answer is not None][:_SHOWN]:
        _say(f"  {answer.request_id}: {answer.label} ({answer.probability:.1%}), says version {answer.version}")
    return Served(promoted=report, answers=answers)


def _promoted(registry: Registry, stream: str, version: int, out: Path, settings: Settings) -> PromotionReport:
    return promote(registry, stream, version, by=_WHO, force=False, state=out / "state", settings=settings)


def _read(kafka: KafkaSettings, topic: str) -> list[Record]:
    _, partitions = topic_partitions(kafka, topic)
    with KafkaRecordSource(kafka, partitions) as source:
        return list(read_records(source, source.beginning_offsets(), source.end_offsets()))


def _label(record: Record) -> str | None:
    answer = parse_answer(record)
    return None if answer is None else answer.label


def _say(text: str) -> None:
    click.echo(text)
