"""`drifting`: a general-continual stream after MNIST-360: images turn steadily while classes come, go and come back.

Buzzega et al. 2020, "Dark Experience for General Continual Learning", arXiv:2004.07211, section 4.4: two consecutive
digits at a time, (0, 1), (1, 2), ..., (8, 0), three times over, so that each class has six parts; each class turns by
360 degrees over all of its images, from a start of its own. The digit 9 is left out, since a turned 6 is one.

Where we differ: parts are equally long, and every image of them comes. `as_published` is as Mammoth's
datasets/mnist_360.py has it: parts of n // 6 + 1 images with the rest as the last one, which comes *first*; a pair ends
when either class has no image left; batches of 16 in the proportion of what is left, the first class before the second.
(There, an image is drawn with replacement from `published_part` of its class; a plan does not choose images.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline import keyed_randomness
from pipeline.user_error import UserError
from producers.class_schedule import ClassSchedule, Plan, quotas, shuffled
from producers.pools import Pools

START_DEGREES = 60.0  # between one class's first angle and the next one's; the first class starts at -60
CONFUSED_WHEN_TURNED = ("6", "9")
BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Drifting(ClassSchedule):
    """`rounds` is how often each pair of classes comes. Steps are the pairs, counted through."""

    name = "drifting"
    rounds: int = 3
    as_published: bool = False

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UserError(f"a stream has at least one round; got --rounds {self.rounds}")

    def plan(self, pools: Pools, records: int | None, seed: int) -> Plan:
        """1. Leave the 9 out. 2. Cut each class's draws into parts, two a round. 3. Pair by pair, mix the next part of
        both. 4. Turn each draw by how many of its class came before."""
        # 1.
        classes = [pool for pool in pools.in_order if not _left_out(pools, pool)]
        if len(classes) < 2:
            raise UserError("a drifting stream takes two classes or more at a time; the data set has only one")
        kept = Pools(
            names=tuple(pools.names[pool] for pool in classes),
            sizes=tuple(pools.sizes[pool] for pool in classes),
            steps=(tuple(range(len(classes))),),
        )
        counts = quotas(kept, records)
        # 2. In the order in which they come.
        parts = [iter(part_lengths(count, 2 * self.rounds, as_published=self.as_published)) for count in counts]
        # 3.
        drawn = []
        for step, (first, second) in enumerate(pairs(len(classes), self.rounds)):
            of_first, of_second = next(parts[first]), next(parts[second])
            if self.as_published:
                runs = list(published_batches(of_first, of_second))
                drawn.append(np.repeat([first, second] * len(runs), [n for run in runs for n in run]))
            else:
                generator = keyed_randomness.generator(seed, "schedule", step)
                drawn.append(shuffled((first, second), (of_first, of_second), generator))
        place_N = np.concatenate(drawn)
        # 4.
        turn_degrees_N = np.empty(len(place_N))
        for place, count in enumerate(counts):
            if count == 0:
                continue
            of_class = np.flatnonzero(place_N == place)
            turn_degrees_N[of_class] = degrees(place, np.arange(len(of_class)), count)
        return Plan(
            pool_N=np.array(classes)[place_N],
            step_N=np.repeat(np.arange(len(drawn)), [len(part) for part in drawn]),
            turn_degrees_N=turn_degrees_N,
        )


def pairs(classes: int, rounds: int) -> list[tuple[int, int]]:
    """(0, 1), (1, 2), ..., (K - 1, 0), `rounds` times. Two classes are one pair, twice."""
    return [(first, (first + 1) % classes) for first in range(classes)] * rounds


def part_lengths(count: int, parts: int, *, as_published: bool = False) -> list[int]:
    """How many draws of a class its 1st, 2nd, ... appearance has."""
    if not as_published:
        return [count // parts + (part < count % parts) for part in range(parts)]
    longest = count // parts + 1
    return [min(longest, max(0, count - part * longest)) for part in reversed(range(parts))]


def published_part(count: int, appearance: int, parts: int = 6) -> slice:
    """Which of a class's images, in the data set's order, its appearance (0, 1, ...) draws from in Mammoth."""
    longest = count // parts + 1
    part = parts - 1 - appearance
    return slice(part * longest, min(count, (part + 1) * longest))


def published_batches(first: int, second: int, batch: int = BATCH) -> Iterator[tuple[int, int]]:
    """Batches of (of the first, of the second) class, in the proportion of what is left, until either has none left."""
    while first > 0 and second > 0:
        of_first = min(round(first / (first + second) * batch), first)
        of_second = min(batch - of_first, second)
        yield of_first, of_second
        first, second = first - of_first, second - of_second


def degrees(place: int, n: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.float64]:
    """By how far the n-th of `count` images of the class in this place is turned, counter-clockwise, in 0..360."""
    turned: npt.NDArray[np.float64] = np.mod((place - 1) * START_DEGREES + n * (360.0 / count), 360.0)
    return turned


def _left_out(pools: Pools, pool: int) -> bool:
    return pools.names[pool] == CONFUSED_WHEN_TURNED[1] and CONFUSED_WHEN_TURNED[0] in pools.names
