"""The scores of all versions that answered lately, in either role, and of those that answered together."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Literal, TypeVar, get_args

from pipeline.evaluation.version_pair import PairScore, VersionPair
from pipeline.evaluation.version_score import VersionScore

Role = Literal["champion", "challenger"]
ROLES: tuple[Role, ...] = get_args(Role)

# Of each role, and of pairs: those that answered last stay. By then an older one's labels hardly matter to anybody.
MOST_VERSIONS = 20

Key = TypeVar("Key")
Score = TypeVar("Score")


class ShadowScores:
    """Counts for each version in each role and for each pair of versions, bounded in number."""

    def __init__(self, window: int) -> None:
        """`window`: how many of the newest answers the recent figures are over."""
        self._window = window
        self.answered: dict[Role, int] = dict.fromkeys(ROLES, 0)  # also by versions that are not kept any more
        self.labelled: dict[Role, int] = dict.fromkeys(ROLES, 0)
        self._newest: dict[Role, tuple[float, int]] = {}  # (time in seconds, version) of the newest answer
        self._versions: dict[Role, OrderedDict[int, VersionScore]] = {role: OrderedDict() for role in ROLES}
        self._pairs: OrderedDict[tuple[int, int], VersionPair] = OrderedDict()

    def add_answer(self, role: Role, version: int, *, readable: bool, time_seconds: float) -> None:
        """A version has answered a request; `readable` is False where it said that it could not read it."""
        self.answered[role] += 1
        self._newest[role] = max(self._newest.get(role, (time_seconds, version)), (time_seconds, version))
        _used(self._versions[role], version, lambda: VersionScore(self._window)).add_answer(readable=readable)

    def add_label(self, role: Role, version: int, label: str, *, right: bool) -> None:
        """The true label of one of its answers has come."""
        self.labelled[role] += 1
        score = self._versions[role].get(version)
        if score is not None:  # else it has answered too long ago to be kept
            score.add_label(label, right)

    def add_pair(self, champion: int, challenger: int, *, agreed: bool) -> None:
        """Both versions have answered the same request, and at least one of them could read it."""
        pair = _used(self._pairs, (champion, challenger), lambda: VersionPair(self._window))
        pair.add_answers(agreed=agreed)

    def add_pair_label(
        self, champion: int, challenger: int, label: str, *, champion_right: bool, challenger_right: bool
    ) -> None:
        """The true label of a request that both answered has come."""
        pair = self._pairs.get((champion, challenger))
        if pair is not None:
            pair.add_label(label, champion_right, challenger_right)

    def newest(self, role: Role) -> tuple[float, int] | None:
        """When a version last answered in this role (in seconds), and which one. None: never."""
        return self._newest.get(role)

    def versions(self, role: Role) -> tuple[int, ...]:
        """Those kept, the one that answered last at the end."""
        return tuple(self._versions[role])

    def pairs(self) -> tuple[tuple[int, int], ...]:
        """(champion, challenger) of those kept, the one that answered last at the end."""
        return tuple(self._pairs)

    def version(self, role: Role, version: int) -> VersionScore | None:
        """None where it has not answered in this role, or too long ago to be kept."""
        return self._versions[role].get(version)

    def pair(self, champion: int, challenger: int) -> VersionPair | None:
        """None where they have not answered the same request, or too long ago to be kept."""
        return self._pairs.get((champion, challenger))

    def pair_score(self, champion: int, challenger: int) -> PairScore:
        """What a promotion of this challenger over this champion goes by; zeros where they never answered together."""
        pair = self._pairs.get((champion, challenger)) or VersionPair(self._window)
        labelled = pair.total.labelled
        return PairScore(
            champion_version=champion,
            challenger_version=challenger,
            answered=pair.answered,
            agreement=pair.agreed / pair.answered if pair.answered else None,
            labelled=labelled,
            champion_accuracy=pair.total.champion_right / labelled if labelled else None,
            challenger_accuracy=pair.total.challenger_right / labelled if labelled else None,
        )


def _used(kept: OrderedDict[Key, Score], key: Key, make: Callable[[], Score]) -> Score:
    """The score under `key`, made where it is missing. Where there are too many, the one used longest ago goes."""
    score = kept.get(key)
    if score is None:
        score = kept[key] = make()
    kept.move_to_end(key)
    if len(kept) > MOST_VERSIONS:
        kept.popitem(last=False)
    return score
