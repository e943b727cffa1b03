"""Puts the shadow's reader together: what a challenger's predictor shows, and what a promotion goes by."""

from __future__ import annotations

from consumers import topics
from consumers.followed_topic import kafka_topic
from consumers.kafka_connection import BrokersUnreachable
from consumers.record_source import SourceUnavailable
from consumers.shadow_reader import ShadowReader
from deploy.judging_versions import PairScores
from deploy.settings import Settings
from pipeline.codec.record_decoder import RecordDecoder
from pipeline.evaluation.version_pair import PairScore


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


def pair_scores(settings: Settings, stream: str, *, may_be_away: bool = False) -> PairScores:
    """How two versions did on the requests that both answered, read from the topics when it is asked for.

    Raises `SourceUnavailable` where the brokers are away, but where they `may_be_away`: nothing is known then.
    """

    def asked(champion: int, challenger: int) -> PairScore | None:
        reader = shadow_reader(settings, stream)
        try:
            return reader.read_to_end().scores.pair_score(champion, challenger)
        except (SourceUnavailable, BrokersUnreachable) as error:
            if may_be_away:
                return None
            raise SourceUnavailable(
                f"the brokers are away ({error}), and how the challenger did in the shadow is not known without them: "
                "try again when they are back, or promote it with --force"
            ) from error
        finally:
            reader.close()

    return asked
