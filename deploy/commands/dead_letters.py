"""`palimpsest dead-letters`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.command_options import bootstrap_servers_option, settings_option, stream_option
from deploy.printable import preview, printable, printable_bytes

if TYPE_CHECKING:
    from consumers.dead_letter_reader import DeadLetter
    from deploy.settings import Settings
    from pipeline.record import Record
    from pipeline.sample import DeadLetterReason

_stream = stream_option("The stream: topics NAME.dead-letters, ...")
_reasons = click.option(
    "--reason", "reasons", multiple=True, metavar="REASON", help="Of this reason only; may be given several times."
)


@click.group(name="dead-letters")
def command() -> None:
    """Look at the records that could not be learnt from, and send them back.

    \b
    Example:
      palimpsest dead-letters list --stream digits --reason broken_image
      palimpsest dead-letters show --stream digits --offset 17 --value-to 17.png
      palimpsest dead-letters replay --stream digits --reason broken_image --dry-run
    """


@command.command(name="list")
@_stream
@_reasons
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="The newest N only; the counts are of all.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line; the last one holds the counts.")
@settings_option
@bootstrap_servers_option
def list_them(
    stream: str,
    reasons: tuple[str, ...],
    limit: int | None,
    as_json: bool,
    settings_file: Path | None,
    bootstrap_servers: str | None,
) -> None:
    """One line for each, oldest first, and how many there are of each reason.

    What stands in a record may be anything: characters that a terminal would obey are shown as escapes.

    \b
    Example:
      palimpsest dead-letters list --stream digits --reason broken_image --limit 20
    """
    import json
    from collections import Counter, deque

    settings = _load(stream, settings_file, bootstrap_servers)
    wanted = _checked(reasons)

    from consumers.dead_letter_reader import parse_dead_letter
    from consumers.dead_letter_replay import dead_letters_topic, open_transactions
    from consumers.kafka_record_source import KafkaRecordSource
    from consumers.record_source import read_records

    topic = dead_letters_topic(settings.kafka, stream)
    with open_transactions(settings.kafka, stream, topic) as transactions:
        positions = transactions.positions()
    counts: Counter[str] = Counter()
    replayed: Counter[str] = Counter()
    foreign = 0
    newest: deque[dict[str, Any]] = deque(maxlen=limit)

    def tell(facts: dict[str, Any]) -> None:
        click.echo(json.dumps(facts, ensure_ascii=True) if as_json else _line(facts))

    if not as_json:
        click.echo(
            f"{'offset':>9}  {'reason':<20}  {'stood at':>12}  {'time':<20}  {'bytes':>11}  {'replayed':<8}  "
            "ce_id: detail"
        )
    with KafkaRecordSource(settings.kafka, topic.partitions) as source:
        for record in read_records(source, source.beginning_offsets(), source.end_offsets()):
            letter = parse_dead_letter(record)
            if letter is None:
                foreign += 1
                continue
            if wanted and letter.reason not in wanted:
                continue
            at = positions.get(record.log_partition)
            is_replayed = at is not None and record.offset < at.of(letter.reason)
            counts[letter.reason] += 1
            replayed[letter.reason] += is_replayed
            facts = _facts(letter, is_replayed, partitions=len(topic.partitions))
            if limit is None:
                tell(facts)
            else:
                newest.append(facts)
    for facts in newest:
        tell(facts)
    if as_json:
        click.echo(json.dumps({"counts": dict(counts), "replayed": dict(replayed), "foreign": foreign}))
        return
    for reason, count in counts.most_common():
        click.echo(f"{printable(reason)}: {count:,}, of which {replayed[reason]:,} were replayed")
    if foreign:
        click.echo(f"written by somebody else, without our headers: {foreign:,}")
    click.echo(f"{counts.total():,} dead letters, of which {replayed.total():,} were replayed")


@command.command()
@_stream
@click.option("--offset", required=True, metavar="OFFSET", help="Which one: as `list` shows it.")
@click.option(
    "--value-to", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write the value there, as is."
)
@settings_option
@bootstrap_servers_option
def show(
    stream: str, offset: str, value_to: Path | None, settings_file: Path | None, bootstrap_servers: str | None
) -> None:
    """Everything about one: why, where it stood, key, headers, and the beginning of its value.

    Nothing of it reaches the terminal raw; --value-to writes the very bytes into a file.

    \b
    Example:
      palimpsest dead-letters show --stream digits --offset 17 --value-to 17.png
    """
    from pipeline.user_error import UserError

    settings = _load(stream, settings_file, bootstrap_servers)

    from consumers.dead_letter_reader import parse_dead_letter
    from consumers.dead_letter_replay import dead_letters_topic, fetch_whole
    from consumers.kafka_record_source import KafkaRecordSource

    topic = dead_letters_topic(settings.kafka, stream)
    place = {str(p.number): p for p in topic.partitions}
    number, _, position = offset.rpartition(":")
    if not position.isdecimal() or (number or "0") not in place:
        raise UserError(f"{offset!r} is not an offset, or PARTITION:OFFSET, as `palimpsest dead-letters list` shows it")
    partition = place[number or "0"]
    with KafkaRecordSource(settings.kafka, topic.partitions) as source:
        record = source.read_one(partition, int(position))
        if record is None:
            begin, end = source.beginning_offsets()[partition], source.end_offsets()[partition]
            raise UserError(
                f"there is no dead letter at offset {position} of {partition}, which holds offsets {begin} to "
                f"{end - 1}; `palimpsest dead-letters list --stream {stream}` shows them"
            )
    letter = parse_dead_letter(record)
    if letter is None:
        click.echo("somebody else wrote this: it has not the headers of a dead letter")
        _show_record(record, record.headers)
    else:
        whole = fetch_whole(settings.kafka, stream, letter)
        click.echo(f"reason:    {printable(letter.reason)}")
        click.echo(f"detail:    {printable(letter.detail)}")
        click.echo(f"stood at:  {printable(letter.stood_at)}, {_time(letter.timestamp_ms)}")
        if whole is None:
            click.echo(f"value:     {letter.value_bytes:,} bytes were left out, and lie no longer where they stood")
        record = letter.record if whole is None else whole
        _show_record(record, letter.headers if whole is None else whole.headers)
        if whole is None and value_to is not None:
            raise UserError(f"the value lies nowhere any more; nothing was written to {value_to}")
    if value_to is not None:
        if record.value is None:
            raise UserError(f"it has no value (a tombstone); nothing was written to {value_to}")
        try:
            value_to.write_bytes(record.value)
        except OSError as error:
            raise UserError(f"cannot write {value_to}: {error.strerror}; give another --value-to") from None
        click.echo(f"the value, {len(record.value):,} bytes, is in {value_to}")


@command.command()
@_stream
@_reasons
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N; the next replay goes on from there.")
@click.option("--dry-run", is_flag=True, help="Count what would be sent, and send nothing.")
@settings_option
@bootstrap_servers_option
def replay(
    stream: str,
    reasons: tuple[str, ...],
    limit: int | None,
    dry_run: bool,
    settings_file: Path | None,
    bootstrap_servers: str | None,
) -> None:
    """Send them back to NAME.samples as they were at first; the learner takes them as ordinary new records.

    Each is sent once, however often this is run or killed: how far it came is committed with what was sent, for
    each reason apart. What is still bad comes back as a new dead letter; what the learner has learnt meanwhile under
    the same ce_id is dropped as a repeat. A second replay at the same time takes over, and the first one ends.

    \b
    Example:
      palimpsest dead-letters replay --stream digits --reason broken_image --dry-run

    \b
    Exit codes:
      0  done, also where SIGTERM or Ctrl-C ended it
      2  something you can put right: an option, a setting, a topic
      4  a newer replay has taken over
      6  the brokers are away: start it again later
    """
    from deploy.stop_signals import stop_on_signals

    with stop_on_signals() as stop:
        settings = _load(stream, settings_file, bootstrap_servers)
        wanted = _checked(reasons)

        from consumers.dead_letter_replay import replay_dead_letters
        from deploy.progress import stage_progress

        with stage_progress() as progress:
            report = replay_dead_letters(
                settings.kafka,
                stream,
                reasons=wanted,
                limit=limit,
                dry_run=dry_run,
                stop=stop,
                progress=progress,
                warned=lambda message: click.echo(f"warning: {printable(message)}", err=True),
            )
    if report.stopped_by == "signal":
        click.echo("stopped by a signal; the next replay goes on from here")
    sent = ", ".join(f"{printable(reason)} {count:,}" for reason, count in report.sent.most_common())
    click.echo(f"{'would send' if dry_run else 'sent'} {report.sent.total():,}" + (f" ({sent})" if sent else ""))
    why = ", ".join(f"{_SKIPPED[str(reason)]}: {count:,}" for reason, count in report.skipped.items())
    click.echo(f"skipped {report.skipped.total():,}" + (f" ({why})" if why else ""))
    for partition, at in sorted(report.positions.items()):
        ahead = "".join(f", {reason} {offset}" for reason, offset in sorted(at.ahead.items()))
        click.echo(f"{'position would be' if dry_run else 'position'}: {partition} offset {at.offset}{ahead}")
    if report.sent and not dry_run:
        click.echo(f"the learner of {stream} takes them as ordinary new records")


_SKIPPED = {
    "foreign": "written by somebody else",
    "elsewhere": "stood in another topic, or a partition that is not there",
    "gone": "value left out, and no longer where it stood",
}


def _load(stream: str, settings_file: Path | None, bootstrap_servers: str | None) -> Settings:
    from consumers import topics
    from deploy.settings import load_settings

    topics.check_stream_name(stream)
    return load_settings(settings_file, {"kafka.bootstrap_servers": bootstrap_servers})


def _checked(reasons: tuple[str, ...]) -> list[DeadLetterReason]:
    from pipeline.sample import DeadLetterReason
    from pipeline.user_error import UserError

    for reason in reasons:
        if reason not in list(DeadLetterReason):
            raise UserError(f"there is no reason {reason!r}; give --reason one of {', '.join(DeadLetterReason)}")
    return [DeadLetterReason(reason) for reason in dict.fromkeys(reasons)]


def _facts(letter: DeadLetter, is_replayed: bool, *, partitions: int) -> dict[str, Any]:
    record = letter.record
    return {
        "offset": str(record.offset) if partitions == 1 else f"{record.partition}:{record.offset}",
        "reason": letter.reason,
        "topic": letter.origin.topic,
        "stood_at": f"{letter.origin.number}:{letter.origin_offset}",
        "time": _time(letter.timestamp_ms),
        "ce_id": letter.text("ce_id"),
        "bytes": letter.value_bytes,
        "is_whole": letter.is_whole,
        "replayed": is_replayed,
        "detail": letter.detail,
    }


def _line(facts: dict[str, Any]) -> str:
    return (
        f"{facts['offset']:>9}  {printable(facts['reason']):<20}  {facts['stood_at']:>12}  {facts['time']:<20}  "
        f"{facts['bytes']:>11,}  {'yes' if facts['replayed'] else 'no':<8}  "
        f"{printable(facts['ce_id'] or '-')}: {printable(facts['detail'])}"
    )


def _time(timestamp_ms: int | None) -> str:
    """2023-11-14T22:13:20Z; anybody can write a dead letter with any number in it."""
    from pipeline.codec.cloud_event import rfc3339
    from pipeline.user_error import UserError

    try:
        return "-" if timestamp_ms is None or timestamp_ms < 0 else f"{rfc3339(timestamp_ms // 1000)[:19]}Z"
    except (UserError, OverflowError):
        return "-"


def _show_record(record: Record, headers: Any) -> None:
    click.echo(f"key:       {printable_bytes(record.key)}")
    for name, value in headers:
        click.echo(f"header:    {printable(name)}: {printable_bytes(value)}")
    if record.value is None:
        click.echo("value:     null")
        return
    click.echo(f"value:     {len(record.value):,} bytes")
    for line in preview(record.value):
        click.echo(f"           {line}")
