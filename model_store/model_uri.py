"""MLflow's names of versions: `models:/NAME/3`, `models:/NAME@champion`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.user_error import UserError

# Names as ours are (`registry.py`): of a model that another program made nothing could be taken over.
_URI = re.compile(
    r"^models:/(?P<name>[A-Za-z0-9._-]{1,200})(?:/(?P<version>[0-9]{1,9})|@(?P<alias>[^/@:'\"\s]{1,200}))$"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelUri:
    """A version of a registered model: by its number, or by an alias, which may point to another one tomorrow."""

    name: str
    at: int | str

    @classmethod
    def parse(cls, text: str) -> ModelUri:
        """`UserError` where it names no version."""
        found = _URI.fullmatch(text)
        if found is None:
            raise UserError(f"{text!r} names no version: give models:/NAME/NUMBER, or models:/NAME@ALIAS")
        version = found["version"]
        return cls(name=found["name"], at=found["alias"] if version is None else int(version))

    def __str__(self) -> str:
        return f"models:/{self.name}{'/' if isinstance(self.at, int) else '@'}{self.at}"
