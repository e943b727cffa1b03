"""What is compared: each method as settings of the learner, after its paper.

Where a benchmark's authors have arguments of their own for a method and a buffer, they stand in the stream's file and
win. Nothing is clipped in the papers' methods, and rows of different passes do not meet in a batch norm (`fused` false
costs the perceptrons two more passes, whose results are the same; so it is left to the streams with batch norm).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.streams.benchmark_stream import BenchmarkStream
from pipeline.settings import LearnerSettings

_PAPERS = {
    "incoming_loss": "cross_entropy",
    "replay": {"sampling": "uniform"},
    "optimizer": {"learning_rate": 0.03, "max_gradient_norm": None},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """`settings` go over those of the stream's protocol."""

    source: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    shuffled: bool = False  # not a continual learner: all classes mixed, an upper bound


def _paper(source: str, retention: Mapping[str, Any], **settings: Any) -> Method:
    return Method(source=source, settings=merged(_PAPERS, {"retention": retention, **settings}))


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings put together; `above` wins, and `retention` is replaced as a whole."""
    result = dict(below)
    for name, value in above.items():
        if isinstance(value, Mapping) and isinstance(result.get(name), Mapping) and name != "retention":
            result[name] = merged(result[name], value)
        else:
            result[name] = value
    return result


_TURNED: dict[str, Any] = {
    "augmentation": {"crop_padding": 2, "rotation_degrees": 15.0, "scale": 0.1, "rows": "replayed"},
    "averaging": {"rate": 0.02},
}

METHODS: dict[str, Method] = {
    "finetune": _paper("no retention: the lower bound", {}),
    "joint": Method(
        source="no retention, classes mixed, one pass",
        settings=merged(_PAPERS, {"retention": {}, "optimizer": {"learning_rate": 0.1}}),
        shuffled=True,
    ),
    "ewc": _paper("online EWC, Schwarz et al. 2018", {"ewc": {}}),
    "ewc_pp": _paper("EWC++, Chaudhry et al. 2018", {"ewc_pp": {"fisher_every": 1}}),
    "er": _paper("ER, Chaudhry et al. 2019", {"er": {}}),
    "er_ace": _paper(
        "ER-ACE, Caccia et al. 2022", {"er": {}}, incoming_loss="er_ace", optimizer={"learning_rate": 0.1}
    ),
    "der": _paper("DER, Buzzega et al. 2020", {"der": {}}),
    "der_pp": _paper("DER++, Buzzega et al. 2020", {"der_pp": {"alpha": 0.2, "beta": 1.0}}),
    "palimpsest": Method(source="the defaults of `palimpsest learn`"),
    "palimpsest_turned": Method(
        source="beta 2; replayed images shifted by 2 pixels, turned by 15 degrees, scaled by 10 %; averaged weights",
        settings={"retention": {"der_pp": {"beta": 2.0}, "ewc_pp": {}}, **_TURNED},
    ),
    "palimpsest_recurring": Method(
        source="as `palimpsest_turned`, for classes that come back: incoming rows over all columns, no EWC++",
        settings={"retention": {"der_pp": {"beta": 2.0}}, "incoming_loss": "cross_entropy", **_TURNED},
    ),
}


def learner_settings(
    stream: BenchmarkStream,
    name: str,
    changes: Mapping[str, Any],
    *,
    seed: int,
    buffer: int,
    epochs: int = 1,
) -> LearnerSettings:
    """Protocol, then method, then the authors' arguments, then `changes`.

    Nothing is held out, since the test part judges, and no detector looks. In epochs records come again, and are no
    repeats.
    """
    fixed: dict[str, Any] = {
        "seed": seed,
        "replay": {"capacity": buffer},
        "hold_out": {"share": 0.0},
        "drift": {"detector": None},
        "evaluation": {"every_records": 10**9, "burst_records": 10**9},
    }
    if epochs > 1:
        fixed["deduplication_window"] = 0
    of_method = merged(METHODS[name].settings, stream.arguments.get((name, buffer), {}))
    return LearnerSettings.model_validate(merged(merged(merged(stream.settings, of_method), fixed), changes))
