"""How the alias `champion` moves: in numbered steps, of which a kill after any leaves what the same call completes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from model_store.fault_points import fault_point
from model_store.promotion_history import PROMOTIONS_TAG, Promotion, new_promotion, promotions_of, promotions_tag
from model_store.registry import Alias, RegisteredVersion, Registry
from pipeline.state import Json
from pipeline.user_error import UserError

# Sends the event of a promotion; False: the brokers did not take it now. It may be told of one twice.
Tell = Callable[[Promotion], bool]

# Among so many newest versions, and those in a role, is looked for what earlier calls left undone.
_NEWEST = 50
_ROLES: tuple[Alias, ...] = ("previous", "champion")


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What a call came to. `told` False: the aliases are moved, and the same call tells the event later."""

    promotion: Promotion
    told: bool
    resumed: bool = False  # an earlier call had begun it


class Promoter:
    """Moves a stream's champion, forward and back. Not for two at once: the later one wins, and both stand in the tags.

    1. The promotion stands in a tag of the version that becomes the champion, as begun.
    2. The alias `previous` goes to the old champion.
    3. The alias `champion` goes to the new one, and the tag says that it has moved. (A rollback does 3 before 2: what
       `previous` points to is where it goes, and a kill between must not lose that.)
    4. The event is told, and the tag says so.

    Raises as the registry, always before or between its steps; that an event could not be told is no failure.
    """

    def __init__(self, registry: Registry, stream: str, tell: Tell) -> None:
        self._registry = registry
        self._stream = stream
        self._tell = tell

    def complete(self) -> Moved | None:
        """What kills, or brokers that were away, left undone; to be called first.

        The answer: the move that made the present champion, where something was left of that one.
        """
        roles = [self._registry.alias(self._stream, role) for role in _ROLES]
        champion = roles[-1]
        known = [*self._registry.newest(self._stream, _NEWEST), *(role for role in roles if role is not None)]
        versions = {version.version: version for version in known}
        made_champion = None if champion is None else next(reversed(promotions_of(champion)), None)
        left = [
            promotion
            for version in versions.values()
            for promotion in promotions_of(version)
            # begun and not of the champion, or not the newest: it never moved, and was given up
            if promotion.stage == "moved" or (promotion.stage == "begun" and promotion == made_champion)
        ]
        answer = None
        for promotion in sorted(left, key=lambda promotion: promotion.at):
            moved = self._finish(promotion, resumed=True, move=promotion.stage == "begun")
            answer = moved if promotion == made_champion else answer
        return answer

    def begun(self, version: RegisteredVersion, *, rollback: bool = False) -> Promotion | None:
        """The promotion to this version that was begun by an earlier call, and whose alias has not moved."""
        champion = self._registry.alias(self._stream, "champion")
        at = None if champion is None else champion.version
        newest = promotions_of(version)[-1:]
        if at != version.version and newest and (newest[0].stage, newest[0].rollback) == ("begun", rollback):
            return newest[0] if newest[0].from_version == at else None
        return None

    def promote(
        self, version: RegisteredVersion, *, by: str, forced: bool = False, figures: Mapping[str, Json] | None = None
    ) -> Moved:
        """Make it the champion; one that was begun is completed as it was begun."""
        begun = self.begun(version)
        if begun is not None:
            return self._finish(begun, resumed=True, move=True)
        champion = self._registry.alias(self._stream, "champion")
        assert champion is None or champion.version != version.version, f"{version.version} is the champion already"
        return self._begin(
            version,
            new_promotion(
                by=by,
                from_version=None if champion is None else champion.version,
                to_version=version.version,
                forced=forced,
                figures=figures,
            ),
        )

    def roll_back(self, *, by: str) -> Moved:
        """Back to `previous`, which becomes what the champion was. `UserError` where there is no way back."""
        champion = self._registry.alias(self._stream, "champion")
        previous = self._registry.alias(self._stream, "previous")
        if champion is None:
            raise UserError(
                f"model {self._stream!r} has no champion to roll back from: `palimpsest promote` makes one of a version"
            )
        if previous is None or previous.version == champion.version:
            raise UserError(
                f"model {self._stream!r} has no version before its champion {champion.version} (no alias `previous`): "
                "name the version to go to with `palimpsest promote --version N`; `palimpsest models` lists them"
            )
        begun = self.begun(previous, rollback=True)
        if begun is not None:
            return self._finish(begun, resumed=True, move=True)
        promotion = new_promotion(by=by, from_version=champion.version, to_version=previous.version, rollback=True)
        return self._begin(previous, promotion)

    def _begin(self, version: RegisteredVersion, promotion: Promotion) -> Moved:
        # 1. What was begun before and never moved was given up.
        kept = [entry for entry in promotions_of(version) if entry.stage != "begun"]
        self._write([*kept, promotion])
        fault_point("promotion.begun")
        return self._finish(promotion, resumed=False, move=True)

    def _finish(self, promotion: Promotion, *, resumed: bool, move: bool) -> Moved:
        if move:
            # 2., 3.
            moves: list[tuple[Alias, int]] = [("champion", promotion.to_version)]
            if promotion.from_version is not None:
                moves.insert(1 if promotion.rollback else 0, ("previous", promotion.from_version))
            for alias, version in moves:
                self._registry.set_alias(self._stream, alias, version)
                fault_point(f"promotion.{alias}")
            promotion = self._staged(replace(promotion, stage="moved"))
            fault_point("promotion.moved")
        # 4.
        told = self._tell(promotion)
        fault_point("promotion.told")
        if told:
            promotion = self._staged(replace(promotion, stage="told"))
        return Moved(promotion=promotion, told=told, resumed=resumed)

    def _staged(self, promotion: Promotion) -> Promotion:
        """The same in its new stage, in the tag too."""
        version = self._registry.find(self._stream, promotion.to_version)
        entries = [] if version is None else promotions_of(version)
        others = [entry for entry in entries if entry.id != promotion.id]
        self._write(sorted([*others, promotion], key=lambda entry: entry.at))
        return promotion

    def _write(self, promotions: list[Promotion]) -> None:
        version = promotions[-1].to_version
        self._registry.set_tag(self._stream, version, PROMOTIONS_TAG, promotions_tag(promotions))
