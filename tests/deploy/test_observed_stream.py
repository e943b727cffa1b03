"""The rules that are shipped, evaluated by a real Prometheus over a real stream that drifts."""

from __future__ import annotations

import pytest

from tests.deploy.observed_stream import ObservedStream

# MLflow's own use of SQLAlchemy
pytestmark = [
    pytest.mark.kafka,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
]


def test_every_target_is_up(observed_stream: ObservedStream) -> None:
    targets = observed_stream.prometheus.targets()
    assert {target["labels"]["job"] for target in targets} == set(observed_stream.targets)
    assert [target["lastError"] for target in targets if target["health"] != "up"] == []
