"""`palimpsest fingerprint`"""

from __future__ import annotations

from pathlib import Path

import click

from deploy.command_options import state_option


@click.command(
    epilog="""\b
Example:
  palimpsest fingerprint --state runs/digits"""
)
@state_option("Folder given to `palimpsest learn`.")
def command(state: Path) -> None:
    """One SHA-256 over the newest snapshot's state: weights, optimizer, reservoir, retention, classes, hold-outs,
    detectors, triggers, offsets. Two learners of the same log and settings print the same, whatever befell them."""
    from model_store.snapshot_store import SnapshotStore
    from pipeline.user_error import UserError

    found = SnapshotStore(state / "snapshots").newest_whole()
    for passed_over in found.passed_over:
        click.echo(f"not whole, passed over: {passed_over.path.name}: {passed_over.why}", err=True)
    if found.snapshot is None:
        raise UserError(f"{state} holds no whole snapshot; `palimpsest learn --state {state}` writes them")
    click.echo(found.snapshot.fingerprint())
