"""`palimpsest snapshots`"""

from __future__ import annotations

from pathlib import Path

import click

from deploy.command_options import state_option


@click.command(
    epilog="""\b
Example:
  palimpsest snapshots --state runs/digits"""
)
@state_option("Folder given to `palimpsest learn`.")
def command(state: Path) -> None:
    """List the snapshots of a state folder, oldest first, and what of it is not whole."""
    from model_store.snapshot_store import SnapshotStore
    from pipeline.user_error import UserError

    store = SnapshotStore(state / "snapshots")
    entries, broken = store.entries(), store.broken()
    if not entries and not broken:
        raise UserError(f"{state} holds no snapshots; `palimpsest learn --state {state}` writes them")
    click.echo(f"{'generation':>10} {'sequence':>8}  {'records':>10}  {'classes':>7}  {'bytes':>12}  written at")
    for entry in entries:
        classes = entry.facts.get("classes")
        click.echo(
            f"{entry.generation:>10} {entry.sequence:>8}  {entry.facts.get('records_consumed', '')!s:>10}  "
            f"{len(classes) if isinstance(classes, list) else 0:>7}  {entry.bytes:>12,}  {entry.written_at}"
        )
    for passed_over in broken:
        click.echo(f"not whole: {passed_over.path.name}: {passed_over.why}")
