"""`palimpsest`: the command line. Each command is a file of deploy/commands, imported only when it is called."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import click

from deploy import commands
from pipeline.user_error import UserError


class LazyGroup(click.Group):
    """Finds its commands by their files' names, so that `--help` imports no torch and a new command is one new file.

    The one-line help of each stands in `deploy/commands/__init__.py`, since reading it from the file would import it.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(info.name.replace("_", "-") for info in pkgutil.iter_modules(commands.__path__))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"deploy.commands.{cmd_name.replace('-', '_')}")
        command = module.command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, commands.SHORT_HELP[name]) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="palimpsest", prog_name="palimpsest")
def palimpsest() -> None:
    """Models that keep learning from a Kafka stream whose classes change, and do not forget.

    \b
    palimpsest broker start
    palimpsest produce --stream digits --dataset digits --schedule blurred
    palimpsest learn --stream digits --state runs/digits --until-idle 5
    """


def main() -> None:
    """Entry point: what the user can put right is one line and exit code 2, or the error's own."""
    try:
        code = palimpsest.main(standalone_mode=False)  # an int where a command called ctx.exit(code)
    except UserError as error:
        click.echo(f"palimpsest: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("palimpsest: interrupted", err=True)
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
