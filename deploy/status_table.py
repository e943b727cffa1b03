"""`palimpsest status` for a person: a learner's figures below each other, in colour on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from consumers.status_answer import StatusAnswer
from deploy.asking_learners import Tried
from deploy.printable import printable
from deploy.status_figures import all_figures


def status_lines(answers: Sequence[StatusAnswer], room: int | None = None) -> list[Text]:
    """A line a figure, one learner after the other; of at most `room` columns."""
    lines: list[Text] = []
    for answer in answers:
        figures = all_figures(answer)
        names = max(len(figure.name) for figure in figures)
        lines += [Text()] if lines else []
        for figure in figures:
            line = Text.assemble((f"{figure.name:<{names}}  ", "dim"), (figure.value, figure.style), no_wrap=True)
            if room is not None:
                line.truncate(room, overflow="ellipsis")
            lines.append(line)
    return lines


def nobody_answers(stream: str | None, branch: str | None, tried: Sequence[Tried]) -> str:
    """What was tried, and the way out."""
    whose = "" if stream is None else f" of stream {stream!r}" + ("" if branch is None else f", branch {branch!r}")
    # a note may be somebody else's, and say anything
    attempts = "; ".join(f"{printable(attempt.where)}: {printable(attempt.why)}" for attempt in tried)
    way_out = (
        "start one with `palimpsest learn`, or give --url where it runs on another machine or under another user "
        '(its line "metrics" says where), or metrics.enabled where it is false'
    )
    return f"no learner{whose} answers ({attempts}); {way_out}"
