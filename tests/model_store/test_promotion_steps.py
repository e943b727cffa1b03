"""The champion's moves: killed after any step, the same call comes to the same end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from model_store.fault_points import on_fault_point
from model_store.promotion_history import Promotion, promotions_of
from model_store.promotion_steps import Moved, Promoter
from model_store.registry import InMemoryRegistry, RegistryUnavailable
from pipeline.user_error import UserError
from tests.model_store.tiny_servable import request

STEPS = ["promotion.begun", "promotion.previous", "promotion.champion", "promotion.moved", "promotion.told"]


class Killed(BaseException):
    """Nothing after this line is run."""


class Desk:
    """A registry with three versions, and somebody who hears of promotions."""

    def __init__(self, folder: Path) -> None:
        self.registry = InMemoryRegistry()
        for number in (1, 2, 3):
            self.registry.register(request(folder / "servable", number))
        self.told: list[Promotion] = []
        self.hears = True

    def promoter(self) -> Promoter:
        return Promoter(self.registry, "pets", self._tell)

    def _tell(self, promotion: Promotion) -> bool:
        if self.hears:
            self.told.append(promotion)
        return self.hears

    def promote(self, number: int, by: str = "ada", **more: Any) -> Moved | None:
        """As `palimpsest promote`."""
        promoter = self.promoter()
        completed = promoter.complete()
        if self.aliases().get("champion") == number:
            return completed
        version = self.registry.find("pets", number)
        assert version is not None
        return promoter.promote(version, by=by, **more)

    def roll_back(self, by: str = "bob") -> Moved:
        """As `palimpsest rollback`."""
        promoter = self.promoter()
        completed = promoter.complete()
        return completed if completed is not None and completed.promotion.rollback else promoter.roll_back(by=by)

    def aliases(self) -> dict[str, int]:
        return {
            alias: version.version
            for version in self.registry.versions("pets")
            for alias in version.aliases
            if alias != "challenger"
        }

    def history(self, number: int) -> list[tuple[int | None, str, bool, str]]:
        version = self.registry.find("pets", number)
        assert version is not None
        return [(entry.from_version, entry.by, entry.rollback, entry.stage) for entry in promotions_of(version)]

    @property
    def ids(self) -> list[str]:
        """Of what readers of the events take for different."""
        return list(dict.fromkeys(promotion.id for promotion in self.told))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture
def killed_at() -> Iterator[Callable[[str], None]]:
    def kill_at(place: str) -> None:
        def hook(name: str) -> None:
            if name == place:
                on_fault_point(None)
                raise Killed

        on_fault_point(hook)

    yield kill_at
    on_fault_point(None)


def test_forward_and_back(desk: Desk) -> None:
    first = desk.promote(1)
    assert first is not None
    assert (first.promotion.from_version, first.told, first.resumed) == (None, True, False)
    assert desk.aliases() == {"champion": 1}
    desk.promote(2, forced=True, figures={"average_accuracy": [0.9, 0.8]})
    assert desk.aliases() == {"champion": 2, "previous": 1}
    assert desk.history(2) == [(1, "ada", False, "told")]
    assert desk.told[-1].forced
    assert desk.told[-1].figures == {"average_accuracy": [0.9, 0.8]}
    back = desk.roll_back()
    assert (back.promotion.from_version, back.promotion.to_version) == (2, 1)
    assert desk.aliases() == {"champion": 1, "previous": 2}
    assert desk.history(1) == [(None, "ada", False, "told"), (2, "bob", True, "told")]
    desk.roll_back()
    assert desk.aliases() == {"champion": 2, "previous": 1}, "back again"
    desk.promote(3)
    assert desk.aliases() == {"champion": 3, "previous": 2}
    assert len(desk.ids) == len(desk.told) == 5


@pytest.mark.parametrize("place", STEPS)
def test_a_promotion_killed_after_any_step_is_completed(
    place: str, desk: Desk, killed_at: Callable[[str], None]
) -> None:
    desk.promote(1)
    killed_at(place)
    with pytest.raises(Killed):
        desk.promote(2)
    moved = desk.promote(2, by="somebody else")
    assert moved is not None
    assert moved.resumed
    assert desk.aliases() == {"champion": 2, "previous": 1}
    assert desk.history(2) == [(1, "ada", False, "told")]
    assert len(desk.ids) == 2
    assert desk.promote(2) is None, "nothing is left"
    assert desk.history(1) == [(None, "ada", False, "told")]


@pytest.mark.parametrize("place", ["promotion.begun", "promotion.champion", "promotion.moved", "promotion.told"])
def test_the_first_promotion_of_all(place: str, desk: Desk, killed_at: Callable[[str], None]) -> None:
    killed_at(place)
    with pytest.raises(Killed):
        desk.promote(2)
    desk.promote(2)
    assert desk.aliases() == {"champion": 2}
    assert desk.history(2) == [(None, "ada", False, "told")]
    assert len(desk.ids) == 1


@pytest.mark.parametrize("place", STEPS)
def test_a_rollback_killed_after_any_step_is_completed_and_not_done_twice(
    place: str, desk: Desk, killed_at: Callable[[str], None]
) -> None:
    desk.promote(1)
    desk.promote(2)
    killed_at(place)
    with pytest.raises(Killed):
        desk.roll_back()
    moved = desk.roll_back(by="somebody else")
    assert moved.resumed
    assert desk.aliases() == {"champion": 1, "previous": 2}
    assert desk.history(1) == [(None, "ada", False, "told"), (2, "bob", True, "told")]
    assert len(desk.ids) == 3


@pytest.mark.parametrize("place", STEPS)
def test_another_version_after_a_kill(place: str, desk: Desk, killed_at: Callable[[str], None]) -> None:
    """Somebody changes their mind: of the first promotion stays what became of it."""
    desk.promote(1)
    killed_at(place)
    with pytest.raises(Killed):
        desk.promote(2)
    desk.promote(3)
    had_moved = place in ("promotion.champion", "promotion.moved", "promotion.told")
    assert desk.aliases() == {"champion": 3, "previous": 2 if had_moved else 1}
    assert desk.history(3) == [(2 if had_moved else 1, "ada", False, "told")]
    assert desk.history(2) == [(1, "ada", False, "told" if had_moved else "begun")]
    assert len(desk.ids) == (3 if had_moved else 2)
    desk.promote(2, by="later")
    assert desk.history(2)[-1] == (3, "later", False, "told"), "what was given up is not taken up again"
    assert len(desk.history(2)) == (2 if had_moved else 1)


@pytest.mark.parametrize("place", ["promotion.champion", "promotion.moved"])
def test_a_rollback_after_a_killed_promotion_goes_back_from_it(
    place: str, desk: Desk, killed_at: Callable[[str], None]
) -> None:
    desk.promote(1)
    killed_at(place)
    with pytest.raises(Killed):
        desk.promote(2)
    desk.roll_back()
    assert desk.aliases() == {"champion": 1, "previous": 2}
    assert desk.history(2) == [(1, "ada", False, "told")]
    assert [promotion.to_version for promotion in desk.told] == [1, 2, 1]


def test_brokers_that_are_away_end_nothing_and_hear_of_it_later(desk: Desk) -> None:
    desk.promote(1)
    desk.hears = False
    moved = desk.promote(2)
    assert moved is not None
    assert not moved.told
    assert desk.aliases() == {"champion": 2, "previous": 1}
    assert desk.history(2) == [(1, "ada", False, "moved")]
    still = desk.promote(2)
    assert still is not None
    assert not still.told
    back = desk.roll_back()
    assert not back.told
    again = desk.roll_back()
    assert again.promotion == back.promotion
    assert desk.aliases() == {"champion": 1, "previous": 2}, "one rollback, however often its event is tried"
    desk.hears = True
    done = desk.roll_back()
    assert done.told
    assert desk.aliases() == {"champion": 1, "previous": 2}
    assert [promotion.to_version for promotion in desk.told] == [1, 2, 1], "that of the version before, too"
    assert desk.history(2) == [(1, "ada", False, "told")]


def test_an_event_that_is_missing_is_told_whichever_version_it_is_of(desk: Desk) -> None:
    desk.promote(1)
    desk.hears = False
    desk.promote(2)
    desk.promote(3)
    desk.promote(1, by="bob")
    desk.registry.set_alias("pets", "previous", None)
    desk.hears = True
    moved = desk.promote(1)
    assert moved is not None
    assert (moved.told, moved.promotion.by) == (True, "bob")
    assert [promotion.to_version for promotion in desk.told] == [1, 2, 3, 1], "in the order of their times"
    assert [desk.history(number)[-1][-1] for number in (1, 2, 3)] == ["told"] * 3
    assert desk.aliases() == {"champion": 1}


def test_it_is_looked_for_among_the_newest_and_those_in_a_role(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model_store.promotion_steps._NEWEST", 1)
    desk.hears = False
    for number in (1, 2, 1, 3):
        desk.promote(number)
    desk.registry.set_alias("pets", "previous", 1)
    desk.hears = True
    desk.promote(3)
    assert [promotion.to_version for promotion in desk.told] == [1, 1, 3]


def test_there_is_no_way_back(desk: Desk) -> None:
    with pytest.raises(UserError, match="'pets' has no champion to roll back from: `palimpsest promote` makes one"):
        desk.roll_back()
    desk.promote(1)
    with pytest.raises(UserError, match=r"'pets' has no version before its champion 1 .*promote --version N"):
        desk.roll_back()


def test_a_registry_that_is_away_changes_nothing(desk: Desk) -> None:
    desk.promote(1)
    desk.registry.available = False
    with pytest.raises(RegistryUnavailable):
        desk.promote(2)
    desk.registry.available = True
    assert desk.aliases() == {"champion": 1}
    assert desk.history(2) == []


def test_an_alias_that_somebody_moved_by_hand_is_taken_as_it_is(desk: Desk) -> None:
    desk.promote(1)
    desk.promote(2)
    desk.registry.set_alias("pets", "champion", 3)
    desk.promote(1)
    assert desk.aliases() == {"champion": 1, "previous": 3}
    assert desk.history(1)[-1] == (3, "ada", False, "told")
