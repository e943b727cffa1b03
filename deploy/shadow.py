"""Puts the shadow's reader together: what a challenger's predictor shows, and what a promotion goes by."""

from __future__ import annotations

from consumers import topics
from consumers.followed_topic import kafka_topic
from consumers.kafka_connection import BrokersUnreachable, ConnectingStopped, heard_stop
from consumers.record_source import LogTruncated, ReadingStopped, SourceUnavailable
from consumers.shadow_reader import ShadowReader
from deploy.judging_versions import PairScores
from deploy.settings import Settings
from pipeline.codec.record_decoder import RecordDecoder
from pipeline.evaluation.version_pair import PairScore
from pipeline.user_error import UserError

# Of each topic a promotion goes back by so many records for each request that is kept at once: labels are of other
# samples too, and the log counts the markers of transactions.
_RECORDS_A_REQUEST = 4


def shadow_reader(
    settings: Settings, stream: str, *, answers: str | None = None, most_back: int | None = None
) -> ShadowReader:
    """Of the stream's topics, or those that the settings name; `answers`: the challenger's, where it is known.

    `most_back`: records of each topic that lie there already, at most; None: all within the horizon.
    """
    shadow = settings.shadow
    return ShadowReader(
        shadow,
        RecordDecoder(settings.learner.input),
        champion=kafka_topic(settings.kafka, shadow.predictions or topics.predictions(stream)),
        challenger=kafka_topic(settings.kafka, answers or shadow.answers or topics.shadow(stream)),
        samples=kafka_topic(settings.kafka, topics.samples(stream)),
        most_back=most_back,
    )


def pair_scores(settings: Settings, stream: str, *, may_be_away: bool = False) -> PairScores:
    """How two versions did on the requests that both answered, read from the topics when it is asked for.

    Of each topic are read the records within `shadow.horizon_seconds`, and of these the newest, four for each of
    `shadow.most_open`: a day of a busy stream would take hours, and a longer record says little more.

    Raises `SourceUnavailable` where the brokers are away, `UserError` where a topic is not to be read, `LogTruncated`
    where a log cannot be read on; but where they `may_be_away` nothing is known then. A stop that the asking thread is
    `hearing` ends it with `ReadingStopped` or `ConnectingStopped` in any case.
    """

    def asked(champion: int, challenger: int) -> PairScore | None:
        reader = shadow_reader(settings, stream, most_back=_RECORDS_A_REQUEST * settings.shadow.most_open)
        try:
            return reader.read_to_end(heard_stop()).scores.pair_score(champion, challenger)
        except (ReadingStopped, ConnectingStopped):
            raise
        except (SourceUnavailable, LogTruncated, UserError) as error:
            if may_be_away:
                return None
            if not isinstance(error, (SourceUnavailable, BrokersUnreachable)):
                raise
            raise SourceUnavailable(
                f"the brokers are away ({error}), and how the challenger did in the shadow is not known without them: "
                "try again when they are back, or promote it with --force"
            ) from error
        finally:
            reader.close()

    return asked
