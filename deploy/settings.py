"""All settings of a process: one YAML file, then the environment over it, checked before anything starts.

    learner:            # pipeline/settings.py
      batch_size: 10
      retention: {der_pp: {alpha: 0.2}}
    kafka:              # consumers/kafka_settings.py
      bootstrap_servers: broker:9092

The same from the environment: PALIMPSEST_LEARNER__BATCH_SIZE=10, PALIMPSEST_KAFKA__BOOTSTRAP_SERVERS=broker:9092.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from consumers.kafka_settings import KafkaSettings
from consumers.process_settings import MetricsSettings, RegistrySettings, SnapshotSettings, StreamSettings
from pipeline.settings import LearnerSettings
from pipeline.user_error import UserError


class Settings(BaseSettings):
    """Every section; later sources win: defaults, file, environment, command line."""

    model_config = SettingsConfigDict(
        env_prefix="PALIMPSEST_", env_nested_delimiter="__", extra="forbid", frozen=True, hide_input_in_errors=True
    )

    learner: LearnerSettings = LearnerSettings()
    kafka: KafkaSettings = KafkaSettings()
    stream: StreamSettings = StreamSettings()
    snapshots: SnapshotSettings = SnapshotSettings()
    registry: RegistrySettings = RegistrySettings()
    metrics: MetricsSettings = MetricsSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings  # the environment stands over the file, which comes in as `init_settings`


def load_settings(file: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read and check all settings. `overrides` ({"kafka.bootstrap_servers": ...}) come from the command line and win.

    Raises `UserError` that names the file, the setting and the way out.
    """
    values = {} if file is None else _read_yaml(file)
    origin = "settings" if file is None else str(file)
    try:
        settings = Settings(**values)
        for path, value in (overrides or {}).items():
            if value is not None:
                settings = _override(settings, path.split("."), value)
    except ValidationError as error:
        raise UserError(_one_line(error, origin)) from None
    return settings


def _override(settings: Settings, path: list[str], value: Any) -> Settings:
    section, name = path
    old = getattr(settings, section)
    new = type(old).model_validate({**dict(old), name: value})
    return settings.model_copy(update={section: new})


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read settings file {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{file} must hold sections such as 'learner:' and 'kafka:', not {type(values).__name__}")
    return values


def _one_line(error: ValidationError, origin: str) -> str:
    """The first thing that is wrong, in one line; how many more there are. Inputs are not shown: they may be secrets."""
    first, *rest = error.errors(include_url=False, include_input=False)
    where = ".".join(str(part) for part in first["loc"]) or "(top level)"
    what = "no such setting" if first["type"] == "extra_forbidden" else first["msg"]
    if first["type"] == "extra_forbidden":
        what += "; `palimpsest settings` prints all that there are"
    more = f" (and {len(rest)} more)" if rest else ""
    return f"{origin}: {where}: {what}{more}"
