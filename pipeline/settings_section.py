"""The base of every settings section: frozen, no unknown keys, every field marked fixed or changeable."""

from __future__ import annotations

from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A group of settings. Sections nest; a leaf is declared with `fixed(...)` or `changeable(...)`."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


_NOT_LATER: Any = object()


def fixed(default: Any = ..., *, why: str, formerly: Any = _NOT_LATER, **constraints: Any) -> Any:
    """A setting that shapes the model: an existing state refuses another value for it. `why` is its description.

    `formerly`: of a setting that came later, how it was before; states from then have that value.
    """
    extra: dict[str, Any] = {"fixed": True} if formerly is _NOT_LATER else {"fixed": True, "formerly": formerly}
    return Field(default, description=why, json_schema_extra=extra, **constraints)


def changeable(default: Any = ..., *, why: str, **constraints: Any) -> Any:
    """A setting that may differ from one start to the next. `why` is its description."""
    return Field(default, description=why, json_schema_extra={"fixed": False}, **constraints)


def fixed_values(section: BaseModel, prefix: str = "") -> dict[str, Any]:
    """{"network.backbone": "mlp", ...}: every fixed leaf with its JSON value."""
    values: dict[str, Any] = {}
    dumped = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        path = f"{prefix}{name}"
        if isinstance(value, BaseModel):
            values.update(fixed_values(value, f"{path}."))
        elif isinstance(value, dict) and any(isinstance(entry, BaseModel) for entry in value.values()):
            values[path] = sorted(value)
            for key, entry in value.items():
                values.update(fixed_values(entry, f"{path}.{key}."))
        else:
            extra = field.json_schema_extra
            assert isinstance(extra, dict), f"setting {path} is not marked fixed or changeable"
            assert "fixed" in extra, f"setting {path} is not marked fixed or changeable"
            if cast(dict[str, Any], extra)["fixed"]:
                values[path] = dumped[name]
    return values


def former_values(section: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """{"replay.sampling": "uniform", ...}: of every fixed leaf that came later, how it was before."""
    values: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        extra = field.json_schema_extra
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            values.update(former_values(field.annotation, f"{prefix}{name}."))
        elif isinstance(extra, dict) and "formerly" in extra:
            values[f"{prefix}{name}"] = extra["formerly"]
    return values
