"""Which classes have time series of their own: the worst ones; the others share one, however many there are."""

from __future__ import annotations

from collections.abc import Mapping

OTHER = "other"


def worst_and_rest(values: Mapping[str, float], limit: int, *, is_shared: bool = False) -> tuple[list[str], list[str]]:
    """At most `limit` classes, those with the lowest values first; and all others, which share `OTHER`.

    Where `OTHER` is shared (`is_shared`: by something else already), a class that is called so is among the others: it
    cannot have a series of its own then.
    """
    worst = sorted(values, key=lambda name: (values[name], name))
    named, rest = worst[:limit], worst[limit:]
    if (rest or is_shared) and OTHER in named:
        named.remove(OTHER)
        rest.insert(0, OTHER)
    return named, rest
