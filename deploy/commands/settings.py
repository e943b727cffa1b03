"""`palimpsest settings`"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command(
    epilog="""\b
Example:
  palimpsest settings > palimpsest.yaml"""
)
@click.option(
    "--settings", "settings_file", type=click.Path(path_type=Path), help="Check this file and print the result."
)
def command(settings_file: Path | None) -> None:
    """Print all settings as YAML, each with what it is for and whether it is fixed for an existing state."""
    from deploy.settings import load_settings

    settings = load_settings(settings_file)
    for name in type(settings).model_fields:
        click.echo(f"{name}:")
        _print(getattr(settings, name), indent=1)


def _print(section: Any, indent: int) -> None:
    import yaml
    from pydantic import BaseModel

    values = section.model_dump(mode="json")
    space = "  " * indent
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            click.echo(f"{space}{name}:")
            _print(value, indent + 1)
            continue
        extra = field.json_schema_extra or {}
        mark = "  [fixed]" if isinstance(extra, dict) and extra.get("fixed") else ""
        click.echo(f"{space}# {field.description}{mark}")
        flow = yaml.safe_dump(values[name], default_flow_style=True, width=10_000).strip().removesuffix("...").strip()
        click.echo(f"{space}{name}: {flow}")
