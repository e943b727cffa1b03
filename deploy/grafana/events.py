"""Annotations: what happened to the model, as lines across all panels.

A restart is no event, except where it is what is shown. After one, counters begin again at 0, and gauges may be 0 or
missing until the state is loaded. So counters are asked for their growth, and a value is compared with one that was
there before: beside nothing, nothing fires.
"""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import AnnotationQuery
from grafana_foundation_sdk.builders.prometheus import Dataquery

from deploy.grafana.series import growth, here
from deploy.grafana.variables import DATASOURCE

_KNOWN = here("palimpsest_known_classes")
_BY_PREDICTORS = 'role!="newest"'
_BY_LEARNER = 'role="newest"'


def shared_annotations() -> list[AnnotationQuery]:
    """All that all dashboards show. Each can be turned off on its dashboard."""
    return [
        _event("New class", _more_classes(), "purple", "a new class"),
        _event(
            "Drift",
            f"sum by (detector) ({growth('palimpsest_drift_events_total')}) > 0",
            "orange",
            "drift, says {{detector}}",
            "detector",
        ),
        _event("Consolidation", _adopted("palimpsest_consolidations_total"), "blue", "a consolidation was adopted"),
        _event("Expansion", _adopted("palimpsest_expansions_total"), "dark-blue", "an expansion was adopted"),
        _event(
            "Promotion",
            f"""sum({growth("palimpsest_promotions_total", 'outcome="promoted"')}) > 0""",
            "dark-green",
            "the worker promoted the challenger",
        ),
        _event("Serving", _came_to_answer(), "green", "version {{version}} came to answer as {{role}}", "role,version"),
        _event("Registered", _registered(), "yellow", "version {{version}} was registered", "version", on=False),
        _event(
            "Restart",
            f"1000 * {here('process_start_time_seconds')}",
            "light-red",
            "{{instance}} began",
            "instance",
            on=False,
            value_is_time=True,
        ),
    ]


def _event(
    name: str, expr: str, colour: str, text: str, tags: str = "", *, on: bool = True, value_is_time: bool = False
) -> AnnotationQuery:
    """`tags`: labels that become tags. `value_is_time`: the value is when it happened, in milliseconds."""
    query = (
        AnnotationQuery()
        .name(name)
        .datasource(DATASOURCE)
        .enable(on)
        .icon_color(colour)
        .title_format(name)
        .text_format(text)
        .use_value_for_time(value_is_time)
        .target(Dataquery().datasource(DATASOURCE).expr(expr).range().ref_id("Annotation"))
    )
    return query.tag_keys(tags) if tags else query


def _adopted(counter: str) -> str:
    return f"""sum({growth(counter, 'outcome="adopted"')}) > 0"""


def _more_classes() -> str:
    """Than in the hour before. The greatest of all processes: the learner may have moved to another address."""
    return f"max({_KNOWN}) > max(max_over_time({_KNOWN}[1h] offset $__interval))"


def _came_to_answer() -> str:
    """A version that no predictor of its role answered by before, while there was one. Whoever promoted it."""
    shown = here("palimpsest_model_info", _BY_PREDICTORS)
    served = here("palimpsest_served_version")
    return (
        f"(max by (role, version) ({shown}) unless max by (role, version) ({shown} offset $__interval)) "
        f"and on (role) (max by (role) ({served} offset $__interval) > 0)"
    )


def _registered() -> str:
    shown = here("palimpsest_model_info", _BY_LEARNER)
    return (
        f"(max by (version) ({shown}) unless max by (version) ({shown} offset $__interval)) "
        f"and on () (max({_KNOWN} offset $__interval) > 0)"
    )
