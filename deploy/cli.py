"""`palimpsest`: the command line. Each command is a file of deploy/commands, imported only when it is called."""

from __future__ import annotations

import importlib
import pkgutil
import signal
import sys
from typing import NoReturn

import click
from click.shell_completion import CompletionItem

from deploy import commands
from deploy.exit_codes import INTERRUPTED, exit_code, one_line
from deploy.logs import configure_logs
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

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The names from the table as well: a shell waits for this at every press of Tab."""
        names = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        options = click.Command.shell_complete(self, ctx, incomplete)
        return [*(CompletionItem(name, help=commands.SHORT_HELP[name]) for name in names), *options]

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
    """Entry point: what is no bug ends in one line and a code of deploy/exit_codes.py; a bug shows its traceback."""
    try:
        configure_logs()
        # Commands that stop by themselves take it over; the others must still leave their `with` blocks, or a demo that
        # is ended would leave its broker behind.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        # An int where a command called ctx.exit(code).
        code = palimpsest.main(prog_name="palimpsest", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else "palimpsest"
        _end(f"{one_line(error.format_message()).removesuffix('.')}; see `{path} --help`", error.exit_code)
    except click.ClickException as error:
        _end(one_line(error.format_message()), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _end("interrupted", INTERRUPTED)
    except Exception as error:
        known = exit_code(error)
        if known is None:
            raise
        # A `UserError` is one line, but for the end of a broker's log below it.
        _end(str(error) if isinstance(error, UserError) else one_line(error), known)
    sys.exit(code if isinstance(code, int) else 0)


def _end(message: str, code: int) -> NoReturn:
    click.echo(f"palimpsest: {message}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
