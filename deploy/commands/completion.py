"""`palimpsest completion`"""

from __future__ import annotations

import click

_SHELLS = ("bash", "zsh", "fish")


@click.command(
    epilog="""\b
Example, once for all later shells:
  palimpsest completion bash > ~/.local/share/bash-completion/completions/palimpsest
  palimpsest completion zsh  > ~/.zfunc/_palimpsest
  palimpsest completion fish > ~/.config/fish/completions/palimpsest.fish

\b
The folder has to be there (mkdir -p), and zsh has to know it: in ~/.zshrc, before compinit,
  fpath+=~/.zfunc

\b
For this shell alone, bash or zsh:
  eval "$(palimpsest completion bash)\""""
)
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print what makes bash, zsh or fish complete commands, options and values: streams, branches, files, choices."""
    from click.shell_completion import get_completion_class

    completion = get_completion_class(shell)
    assert completion is not None, "click has one for each of them"
    click.echo(completion(context.find_root().command, {}, "palimpsest", "_PALIMPSEST_COMPLETE").source())
