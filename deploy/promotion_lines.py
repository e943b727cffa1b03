"""What a promotion says to a person: the table of figures and bounds, then what became of it and why."""

from __future__ import annotations

import json
from pathlib import Path

import click

from deploy.exit_codes import one_line
from deploy.printable import printable
from deploy.promoting import PromotionReport
from deploy.tables import print_table
from model_store.promotion import Verdict, shown
from pipeline.state import Json
from pipeline.user_error import UserError


def print_report(report: PromotionReport, *, forced: bool) -> None:
    """To stdout; a refusal's reasons and what could not be told to stderr."""
    if report.verdict is not None:
        _print_verdict(report, report.verdict)
    uri = f"models:/{report.stream}/{report.version}"
    if report.superseded_by is not None:
        click.echo(
            f"warning: {uri} is superseded: what it learnt was learnt again since, by {report.superseded_by} and later",
            err=True,
        )
    if report.refused:
        assert report.verdict is not None
        more = ""
        if report.verdict.may_pass_later and not report.verdict.may_be_forced:
            pass  # the reason says what to do
        elif not report.verdict.may_be_forced:
            more = " (--force does not help: it would serve nobody)" if forced else ""
        elif not forced:
            more = "; --force promotes it all the same"
        click.echo(f"palimpsest: {uri} is not promoted{more}", err=True)
    elif report.moved is None:
        click.echo(f"{uri} is the champion already")
    else:
        click.echo(_moved_line(report))
    if report.problem is not None:
        what = "refusal" if report.refused else "promotion"
        again = "" if report.refused else "; it is told when the same command is run again"
        click.echo(f"palimpsest: the event of the {what} is not told: {one_line(report.problem)}{again}", err=True)


def check_json_file(file: Path) -> None:
    """`UserError` where it cannot be written: before anything is promoted, and not afterwards."""
    was_there = file.exists()
    try:
        file.open("a").close()
        if not was_there:
            file.unlink()
    except OSError as error:
        raise _cannot_write(file, error) from None


def write_json(report: PromotionReport, file: Path) -> None:
    """`UserError` where it cannot be written."""
    moved = report.moved
    document: dict[str, Json] = {
        "stream": report.stream,
        "version": report.version,
        "champion_before": report.champion,
        "champion": report.champion if moved is None else moved.promotion.to_version,
        "promoted": report.promoted,
        "verdict": None if report.verdict is None else report.verdict.as_json,
        "promotion": None if moved is None else moved.promotion.as_json,
        "event_told": None if moved is None else moved.told,
    }
    try:
        file.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise _cannot_write(file, error) from None


def _cannot_write(file: Path, error: OSError) -> UserError:
    return UserError(f"cannot write {file}: {error.strerror}; give another --json")


def _print_verdict(report: PromotionReport, verdict: Verdict) -> None:
    if verdict.checks:
        champion = "champion" if report.champion is None else f"champion {report.champion}"
        columns = ("figure", champion, f"version {report.version}", "bound", "")
        rows = [
            (
                check.name.replace("_", " "),
                shown(check.champion, check.unit),
                shown(check.challenger, check.unit),
                check.bound,
                {"passed": "passed", "failed": "FAILED", "unknown": "says nothing"}[check.outcome],
            )
            for check in verdict.checks
        ]
        print_table(columns, rows, right=columns[1:3])
    for reason in verdict.reasons:
        click.echo(printable(reason), err=not verdict.passed)


def _moved_line(report: PromotionReport) -> str:
    moved = report.moved
    assert moved is not None
    promotion = moved.promotion
    uri = f"models:/{report.stream}/{promotion.to_version}"
    before = "" if promotion.from_version is None else f"; previous is {promotion.from_version}"
    if report.champion == promotion.to_version:
        told = "the event that was missing is told" if moved.told else "its event is still missing"
        return f"{uri} is the champion already, by {printable(promotion.by)} at {promotion.at}; {told}"
    how = "rolled back to" if promotion.rollback else "promoted"
    begun = f", which was begun by {printable(promotion.by)} at {promotion.at}" if moved.resumed else ""
    against = ", against the gate" if promotion.forced else ""
    return f"{how} {uri}{against}{begun}{before}"
