"""Puts the shadow's reader together: what a challenger's predictor shows, and what a promotion goes by."""

from __future__ import annotations

from consumers import topics
from consumers.followed_topic import kafka_topic
from consumers.shadow_reader import ShadowReader
from deploy.settings import Settings
from pipeline.codec.record_decoder import RecordDecoder


def shadow_reader(settings: Settings, stream: str, *, answers: str | None = None) -> ShadowReader:
    """Of the stream's topics, or those that the settings name; `answers`: the challenger's, where it is known."""
    shadow = settings.shadow
    return ShadowReader(
        shadow,
        RecordDecoder(settings.learner.input),
        champion=kafka_topic(settings.kafka, shadow.predictions or topics.predictions(stream)),
        challenger=kafka_topic(settings.kafka, answers or shadow.answers or topics.shadow(stream)),
        samples=kafka_topic(settings.kafka, topics.samples(stream)),
    )
