"""All settings of a process: one YAML file, then the environment over it, checked before anything starts.

    learner:            # pipeline/settings.py
      batch_size: 10
      retention: {der_pp: {alpha: 0.2}}
    kafka:              # consumers/kafka_settings.py
      bootstrap_servers: broker:9092

The same from the environment: PALIMPSEST_LEARNER__BATCH_SIZE=10, PALIMPSEST_KAFKA__BOOTSTRAP_SERVERS=broker:9092;
what holds several values is JSON there: PALIMPSEST_LEARNER__RETENTION='{"der_pp": {"alpha": 0.2}}'.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from consumers.kafka_settings import KafkaSettings
from consumers.predictor_settings import PredictorSettings
from consumers.process_settings import (
    MetricsSettings,
    PageSettings,
    RegistrySettings,
    SnapshotSettings,
    StreamSettings,
    WorkerSettings,
)
from consumers.shadow_settings import ShadowSettings
from model_store.promotion_settings import PromotionSettings
from pipeline.restructuring.acceptance import AcceptanceSettings
from pipeline.restructuring.consolidation_settings import ConsolidationSettings
from pipeline.restructuring.expansion_settings import ExpansionSettings
from pipeline.settings import LearnerSettings, NetworkSettings
from pipeline.user_error import UserError

_PREFIX = "PALIMPSEST_"


class Settings(BaseSettings):
    """Every section; later sources win: defaults, file, environment, command line."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, hide_input_in_errors=True
    )

    learner: LearnerSettings = LearnerSettings()
    kafka: KafkaSettings = KafkaSettings()
    stream: StreamSettings = StreamSettings()
    snapshots: SnapshotSettings = SnapshotSettings()
    registry: RegistrySettings = RegistrySettings()
    metrics: MetricsSettings = MetricsSettings()
    page: PageSettings = PageSettings()
    consolidation: ConsolidationSettings = ConsolidationSettings()
    expansion: ExpansionSettings = ExpansionSettings()
    acceptance: AcceptanceSettings = AcceptanceSettings()
    worker: WorkerSettings = WorkerSettings()
    predictor: PredictorSettings = PredictorSettings()
    shadow: ShadowSettings = ShadowSettings()
    promotion: PromotionSettings = PromotionSettings()

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

    Raises `UserError` that names the file or the variable, the setting and the way out.
    """
    values = {} if file is None else _read_yaml(file)
    _check_variables()
    try:
        settings = Settings(**values)
        for path, value in (overrides or {}).items():
            if value is not None:
                settings = _override(settings, path.split("."), value)
    except ValidationError as error:
        raise UserError(_one_line(error, file)) from None
    except SettingsError as error:  # quotes the field, not its value
        section = str(error).partition('"')[2].partition('"')[0]
        start = f"{_PREFIX}{section.upper()}"
        names = sorted(name for name in os.environ if name.upper() == start or name.upper().startswith(f"{start}__"))
        raise UserError(
            f"{' or '.join(names)} is not JSON, and must be, since it holds more than a single value; "
            f"such as {_PREFIX}LEARNER__RETENTION='{{\"der_pp\": {{}}}}', or {_PREFIX}LEARNER__BATCH_SIZE=10"
        ) from None
    _check_backbone(settings.learner.network, file)
    return settings


def _override(settings: Settings, path: list[str], value: Any) -> Settings:
    section, name = path
    old = getattr(settings, section)
    # of the others those that somebody has set: what is left to its default stays known as such
    given = {field: getattr(old, field) for field in old.model_fields_set}
    new = type(old).model_validate({**given, name: value})
    return settings.model_copy(update={section: new})


class _StrictLoader(yaml.SafeLoader):
    """YAML lets the last of two equal keys win; here somebody would look for hours at the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            if key_node.value in seen:
                line = key_node.start_mark.line + 1
                raise UserError(f"{key_node.value!r} stands there twice, again in line {line}; keep one of them")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read settings file {file}: {error.strerror}; check --settings") from None
    except UnicodeDecodeError as error:
        raise UserError(f"settings file {file} is not YAML: it is not UTF-8 text ({error.reason})") from None
    try:
        values = yaml.load(text, _StrictLoader)  # a SafeLoader
    except UserError as error:
        raise UserError(f"settings file {file}: {error}") from None
    except yaml.MarkedYAMLError as error:
        # Without the excerpt that PyYAML would add, and without the words that it quotes: they may be a secret.
        where = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        problem = re.sub(r"'[^'<][^']+'", "something", error.problem or "")
        raise UserError(f"settings file {file}{where} is not YAML as it should be: {problem}") from None
    except yaml.YAMLError as error:
        raise UserError(f"settings file {file} is not YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{file} must hold sections such as 'learner:' and 'kafka:', not {type(values).__name__}")
    # A section of which everything is commented out is empty, not wrong.
    return {key: {} if value is None else value for key, value in values.items()}


def _check_variables() -> None:
    """A mistyped section in a variable's name would go unseen otherwise: only the prefix says that it is ours.

    What Kubernetes sets for services named palimpsest or palimpsest-metrics (PALIMPSEST_METRICS_SERVICE_HOST,
    PALIMPSEST_METRICS_PORT=tcp://...) is no setting and no mistake.
    """
    with_one_underscore = _variables_with_one_underscore(Settings.model_fields)
    for name, value in sorted(os.environ.items()):
        if not name.upper().startswith(_PREFIX):
            continue
        rest = name.upper().removeprefix(_PREFIX)
        section, delimiter, _ = rest.partition("__")
        if delimiter and section.lower() not in Settings.model_fields:
            raise UserError(
                f"{name}: there is no section {section.lower()!r} in the settings; "
                f"there are {', '.join(Settings.model_fields)}"
            )
        if rest in with_one_underscore and not value.startswith("tcp://"):
            raise UserError(
                f"{name} would set nothing: sections end with two underscores; "
                f"did you mean {_PREFIX}{with_one_underscore[rest]}?"
            )


def _variables_with_one_underscore(fields: Mapping[str, FieldInfo], path: tuple[str, ...] = ()) -> dict[str, str]:
    """{"LEARNER_REPLAY_CAPACITY": "LEARNER__REPLAY__CAPACITY", ...} of every setting."""
    names: dict[str, str] = {}
    for name, field in fields.items():
        here = (*path, name.upper())
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names |= _variables_with_one_underscore(field.annotation.model_fields, here)
        else:
            names["_".join(here)] = "__".join(here)
    return names


def _check_backbone(network: NetworkSettings, file: Path | None) -> None:
    """Now, and not when the first record shows what the input looks like: the stream may be empty for days."""
    if network.backbone == "auto":
        return  # which one it is, and so which options it takes, is not known yet
    from pipeline.backbones import backbones

    known = backbones()
    if network.backbone not in known:
        raise UserError(
            f"{_origin(('learner', 'network', 'backbone'), file)}: learner.network.backbone: there is no "
            f"{network.backbone!r}; use auto or one of {', '.join(sorted(known))}"
        )
    config = known[network.backbone].Config
    try:
        config.model_validate(network.options)
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors(include_input=False)[0]["loc"])
        raise UserError(
            f"{_origin(('learner', 'network', 'options'), file)}: learner.network.options.{place}: "
            f"{_what(error)}; backbone {network.backbone} takes {', '.join(sorted(config.model_fields))}"
        ) from None


def _one_line(error: ValidationError, file: Path | None) -> str:
    """The first thing that is wrong, in one line; how many more there are. No inputs: they may be secrets."""
    location = error.errors(include_url=False, include_input=False)[0]["loc"]
    where = ".".join(str(part) for part in location) or "(top level)"
    what = _what(error)
    if what == _UNKNOWN:
        what += "; `palimpsest settings` prints all that there are"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{_origin(location, file)}: {where}: {what}{more}"


_UNKNOWN = "no such setting"


def _what(error: ValidationError) -> str:
    """Pydantic's message without its "Value error, " before our own."""
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "model_type":
        return "a section holds settings by name, not a single value"
    return _UNKNOWN if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")


def _origin(location: tuple[int | str, ...], file: Path | None) -> str:
    """Who set it: the variable that does, else the file."""
    path = [str(part).upper() for part in location]
    variables = {name.upper(): name for name in os.environ}
    for length in range(len(path), 0, -1):
        variable = variables.get(_PREFIX + "__".join(path[:length]))
        if variable is not None:
            return variable
    return "settings" if file is None else str(file)
