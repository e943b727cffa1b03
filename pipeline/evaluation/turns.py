"""Which classes an evaluation looks at: all while they are few, else those whose turn it is.

With a thousand classes of 200 held-out samples, looking at all of them every 500 records would take ten times as long
as learning these records. So an evaluation of more than 2,000 samples is spread: a class is still looked at whole, so
that a_c(t), its n and its standard error are what they always are, but t is not the same for all classes.

All of it follows from the state and from counts of records, so that it goes on after a restart as it would have.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

# Up to so many samples are looked at whenever there is an evaluation: ten classes with the default 200 of each.
ALL_AT_ONCE = 2_000
# Of more than that so many for every record between two evaluations. It is what looking at ALL_AT_ONCE costs with the
# default of 500 records, and a small part of what learning a record does: that takes dozens of rows, there and back.
_SAMPLES_PER_RECORD = 4


def periodic_budget(every_records: int) -> int:
    """How many samples a periodic evaluation may look at."""
    return _SAMPLES_PER_RECORD * every_records


def classes_in_turn(
    counts: Mapping[str, int],
    evaluated_at: Mapping[str, int],
    *,
    ended: Collection[str],
    budget: int,
) -> list[str]:
    """The classes to be evaluated now, in the order of `counts`: {class: held-out samples, at least 1}.

    `evaluated_at`: {class: records consumed when it last was}. `ended`: classes whose first burst has just ended.
    `budget`: samples; 0 where nothing but the end of a burst is the reason.

    1. All, if that is cheap.
    2. Else those whose burst has ended, since that moment does not come again,
    3. and of the others those that have waited longest, never evaluated ones first, while there is budget left, which
       the last one may exceed. One class is looked at in any case.
    """
    # 1.
    if sum(counts.values()) <= ALL_AT_ONCE:
        return list(counts)
    # 2.
    chosen = {label for label in ended if label in counts}
    # 3.
    waiting = [label for label in counts if label not in chosen]
    left = budget
    for label in sorted(waiting, key=lambda label: evaluated_at.get(label, -1)):  # stable: then as in `counts`
        if left <= 0 and chosen:
            break
        chosen.add(label)
        left -= counts[label]
    return [label for label in counts if label in chosen]
