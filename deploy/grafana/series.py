"""The PromQL that panels and annotations are made of: always of the instances that the variables name.

A series that says NaN (what cannot be said yet) is left out by a comparison that NaN does not fulfil: a panel then
shows that there is nothing yet, and not a word in place of a figure.
"""

from __future__ import annotations

HERE = 'instance=~"$instance"'


def here(name: str, *matchers: str) -> str:
    """The series of this name."""
    return f"{name}{{{', '.join((HERE, *matchers))}}}"


def ratio(name: str, *matchers: str) -> str:
    """Those of them that are known; a ratio or a difference of ratios is -1 at least."""
    return f"{here(name, *matchers)} >= -1"


def rate(name: str, *matchers: str) -> str:
    """How much a counter grows in a second."""
    return f"rate({here(name, *matchers)}[$__rate_interval])"


def growth(name: str, *matchers: str) -> str:
    """How much a counter grew lately: above 0 for at least one point of a graph after each increment, and for none
    after a restart, where it begins again at 0. An estimate: not a whole number."""
    return f"increase({here(name, *matchers)}[$__rate_interval])"


def added(name: str, *matchers: str) -> str:
    """What was counted between one point of a graph and the next: the whole number, so that bars add up to what there
    was. What a process counted between its restart and the next point is missing."""
    counter = here(name, *matchers)
    return f"clamp_min({counter} - {counter} offset $__interval, 0)"


def quantile(share: float, histogram: str, *by: str, of: tuple[str, ...] = ()) -> str:
    """Of the last moments' observations, by these labels, of the series that match; nothing where there are none."""
    labels = ", ".join(("le", *by))
    return f"histogram_quantile({share}, sum by ({labels}) ({rate(f'{histogram}_bucket', *of)})) >= 0"


def age(name: str, *matchers: str) -> str:
    """Seconds since a timestamp; nothing where it is not known."""
    return f"time() - ({here(name, *matchers)} > 0)"
