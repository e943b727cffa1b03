"""What a process that works on a state is, as far as the brokers say it."""

from __future__ import annotations

from collections.abc import Mapping

from consumers.manifest_facts import ProcessFacts
from consumers.topics import SamplesTopic
from pipeline.state import Json


def process_facts(
    samples: SamplesTopic,
    *,
    stream: str,
    branch: str,
    state_id: str = "",
    environment: Mapping[str, Json] | None = None,
) -> ProcessFacts:
    """`state_id` is empty for one that has none of its own: it has the state's, or makes one."""
    return ProcessFacts(
        stream=stream,
        branch=branch,
        topic=samples.topic,
        cluster_id=samples.cluster_id,
        topic_id=samples.topic_id,
        state_id=state_id,
        environment=environment or {},
    )
