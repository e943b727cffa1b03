"""`palimpsest status`"""

from __future__ import annotations

from pathlib import Path

import click

from deploy.command_options import state_option, stream_option
from deploy.completed_values import branch_names


@click.command(
    epilog="""\b
Example:
  palimpsest status --stream digits
  palimpsest status --stream digits --json | jq .lag_records
  palimpsest status --state runs/digits --watch

\b
Exit codes:
  0  a learner answered, whatever it does
  2  something you can put right: an option
  9  no learner answers: it does not run, or elsewhere"""
)
@stream_option("Of this stream.  [default: whichever runs here]", required=False)
@click.option("--branch", metavar="NAME", shell_complete=branch_names, help="Of this branch.  [default: all of them]")
@state_option("The one that works on this state.", required=False)
@click.option("--url", metavar="URL", help="Where it shows its metrics, as it says at its start; asks nobody else.")
@click.option("--json", "as_json", is_flag=True, help="JSON, one object a line for each that answers.")
@click.option("--watch", is_flag=True, help="Again every second, until Ctrl-C.")
@click.pass_context
def command(
    context: click.Context,
    stream: str | None,
    branch: str | None,
    state: Path | None,
    url: str | None,
    as_json: bool,
    watch: bool,
) -> None:
    """Ask a running learner how far it is, how good it is, and when it makes its next snapshot.

    Learners of this user on this machine are found by themselves, whichever port they have; one that runs elsewhere by
    --url. All that fit are shown.
    """
    from functools import partial

    from deploy import watching_learners
    from deploy.asking_learners import find_learners
    from deploy.exit_codes import NO_LEARNER
    from deploy.status_table import nobody_answers

    find = partial(find_learners, stream=stream, branch=branch, state=state, url=url)
    if watch:
        watching_learners.watch(find, stream=stream, branch=branch, as_json=as_json)
        return
    found = find()
    if not found.answers:
        click.echo(f"palimpsest: {nobody_answers(stream, branch, found.tried)}", err=True)
        context.exit(NO_LEARNER)
    watching_learners.show(found.answers, as_json=as_json)
