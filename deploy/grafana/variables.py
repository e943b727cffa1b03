"""The variables that all dashboards share: which Prometheus, which stream, which branch, which of its processes.

Only `palimpsest_build_info` bears the stream's name. One stream and one branch are chosen, which is one learner: so
its figures go on in one line where it moves to another address, and are never mixed with another learner's. Processes
that have no branch (workers, predictors) belong to all branches of their stream.
"""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import DatasourceVariable, QueryVariable
from grafana_foundation_sdk.models.common import DataSourceRef
from grafana_foundation_sdk.models.dashboard import VariableOption, VariableRefresh, VariableSort

DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")


def shared_variables() -> list[DatasourceVariable | QueryVariable]:
    """From left to right; each asks within the choice of those before it."""
    return [
        DatasourceVariable("datasource")
        .label("Prometheus")
        .description(
            "Where the metrics are. The first of Grafana's Prometheus data sources, unless you choose another."
        )
        .type("prometheus"),
        _asked("stream", "label_values(palimpsest_build_info, stream)")
        .label("Stream")
        .description("The stream whose learner, worker and predictors are shown."),
        _asked("branch", 'label_values(palimpsest_build_info{stream="$stream"}, branch)')
        .label("Branch")
        .description("The learner's branch: main, or another one that learns beside it for a comparison.")
        .current(VariableOption(selected=True, text="main", value="main")),
        _asked("instance", 'label_values(palimpsest_build_info{stream="$stream", branch=~"$branch|"}, instance)')
        .label("Process")
        .description(
            "The addresses at which these processes were scraped in this time. All of them, unless you choose."
        )
        .multi(True)
        .include_all(True)
        .current(VariableOption(selected=True, text=["All"], value=["$__all"])),
    ]


def _asked(name: str, query: str) -> QueryVariable:
    return (
        QueryVariable(name)
        .datasource(DATASOURCE)
        .query({"qryType": 1, "query": query, "refId": f"{name}-variable"})
        .definition(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
    )
