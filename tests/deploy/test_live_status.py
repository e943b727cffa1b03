"""The figures at the bottom of a real terminal: what a person sees of a learner, and what is left when it has ended."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.text import Text

from consumers.status_answer import StatusAnswer, WorstClass
from deploy.embedded_kafka import EmbeddedKafka
from deploy.line_queue import LineQueue
from deploy.live_status import flowing
from deploy.status_figures import all_figures, live_figures
from tests.deploy.command_line import environment
from tests.deploy.streams import send, settings_file
from tests.deploy.terminal import DEADLINE_SECONDS, OF_A_TERMINAL, Terminal
from tests.system_package import require_program

ANSWER = StatusAnswer(
    stream="digits",
    branch="main",
    palimpsest="0.1.0",
    state="learning",
    time=1_000.0,
    started_at=0.0,
    device="cpu",
    records_consumed=1_234_567,
    records_per_second=308.2,
    lag_records=12_345,
    classes=12,
    average_accuracy=0.976,
    average_forgetting=0.014,
    worst_class=WorstClass(name="köln", accuracy=0.833, forgetting=0.1, n=30),
    next_snapshot_seconds=12.0,
)

# A loop as a learner's, under the figures; `turn(number)` is what the test is about.
LOOP = f"""
import sys, threading, time
from consumers.status_answer import StatusAnswer
from deploy.live_status import LiveStatus, is_drawn_on
answer = StatusAnswer.model_validate_json({ANSWER.model_dump_json()!r})
assert is_drawn_on(sys.stderr)
with LiveStatus(lambda: answer, is_stopping=lambda: False):
    for number in range(1_000_000):
        turn(number)
        time.sleep(0.01)
"""
ROWS = 20
DRAWN = "records 1,234,567"
COLOUR = re.compile(rb"\x1b\[(?:[0-9;]*;)?(?:3[0-8]|4[0-8]|9[0-7])(?:;[0-9;]*)?m")


def looping(turn: str, *, no_color: str = "") -> Terminal:
    return Terminal(program=f"def turn(number):\n    {turn}\n{LOOP}", NO_COLOR=no_color)


def is_drawn(terminal: Terminal) -> bool:
    return DRAWN in terminal.text


@pytest.mark.kafka
def test_a_learner_on_a_terminal_of_any_width_and_what_ctrl_c_leaves(
    kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path
) -> None:
    send(kafka_broker, stream_name, 1_500)
    file = settings_file(tmp_path, kafka_broker, "registry: {enabled: false}\nsnapshots: {every_seconds: 600}\n")
    learn = ("learn", "--stream", stream_name, "--state", tmp_path / "state", "--settings", file)
    with Terminal(*learn, columns=80) as terminal:
        terminal.wait_for(lambda seen: "state learning" in seen.text)
        terminal.resize(40, 24)
        terminal.wait_for(lambda seen: "state idle" in seen.text)
        # as many lines as there must be, each of them whole
        lines = terminal.lines
        figures = lines[next(at for at, line in enumerate(lines) if line.startswith("state idle")) :]
        assert figures[0] == "state idle      records 1,500"
        assert [line.split()[0] for line in figures] == ["state", "rate", "accuracy", "worst", "snapshot"], figures
        terminal.resize(120, 24)
        terminal.wait_for(lambda seen: any("records 1,500" in line and "accuracy" in line for line in seen.lines))
        assert sum("state idle" in line for line in terminal.lines) == 1, "those drawn for 40 columns are gone"
        assert [line for line in terminal.lines if line.strip().startswith("new: ")], "lines are above the figures"
        terminal.press("\x03")
        assert terminal.end() == 0
        *_, figures_line, last = terminal.lines
        assert re.fullmatch(r" +1,500 records .*/s  lag +0 +10 classes  accuracy .*", figures_line)
        assert re.fullmatch(r"stopped \(signal\): 1,500 records in .* s, snapshot 1", last)
        assert "state " not in "\n".join(terminal.lines)
        assert terminal.shows_cursor


@pytest.mark.kafka
@pytest.mark.parametrize(("option", "term"), [((), "dumb"), (("--no-live",), "xterm")], ids=["dumb", "no-live"])
def test_lines_alone_where_nothing_is_to_be_drawn(
    kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path, option: tuple[str, ...], term: str
) -> None:
    send(kafka_broker, stream_name, 200)
    file = settings_file(tmp_path, kafka_broker, "registry: {enabled: false}\n")
    learn = ("learn", "--stream", stream_name, "--state", tmp_path / "state", "--settings", file, "--until-idle", 0.2)
    with Terminal(*learn, *option, TERM=term) as terminal:
        assert terminal.end() == 0
        assert b"\x1b" not in terminal.raw, "no letter of it is an order to the terminal"
        assert terminal.lines[0] == "started; nothing learnt yet"
        assert terminal.lines[-1].startswith("stopped (idle): 200 records")


def test_a_line_goes_above_the_figures_whatever_is_in_it() -> None:
    with looping("number == 50 and print('so \x1b[2J\x07 it was\\nand', number, file=sys.stderr)") as terminal:
        terminal.wait_for(lambda seen: "and 50" in seen.text)
        terminal.wait_for(lambda seen: seen.lines[-2].startswith("state learning"))
        assert terminal.lines[:2] == ["so  it was", "and 50"]
        assert terminal.lines[2].startswith("state learning")
        assert len(terminal.lines) == 4


def test_a_crash_leaves_its_traceback_and_the_cursor(tmp_path: Path) -> None:
    may_crash = tmp_path / "may-crash"
    crashes = f"1 // (not __import__('os').path.exists({str(may_crash)!r}))"
    with looping(f"print('before', file=sys.stderr) if number == 50 else {crashes}") as terminal:
        terminal.wait_for(lambda seen: is_drawn(seen) and seen.lines[0] == "before")
        may_crash.touch()
        assert terminal.end() == 1
        assert terminal.lines[0] == "before"
        assert terminal.lines[1] == "Traceback (most recent call last):"
        assert terminal.lines[-1].startswith("ZeroDivisionError")
        assert DRAWN not in terminal.text
        assert terminal.shows_cursor


def test_ctrl_c_that_nobody_catches_leaves_the_cursor() -> None:
    with looping("pass") as terminal:
        terminal.wait_for(is_drawn)
        terminal.press("\x03")
        assert terminal.end() == -signal.SIGINT
        assert terminal.lines[-1] == "KeyboardInterrupt"
        assert DRAWN not in terminal.text
        assert terminal.shows_cursor


def test_even_kill_9_leaves_the_cursor() -> None:
    with looping("pass") as terminal:
        terminal.wait_for(is_drawn)
        terminal.process.kill()
        assert terminal.end() == -signal.SIGKILL
        assert terminal.shows_cursor


def test_a_terminal_that_stands_still_stops_no_loop_and_gets_the_newest_lines(tmp_path: Path) -> None:
    still, done = tmp_path / "still", tmp_path / "done"
    program = f"""
from pathlib import Path
said = 0
def turn(number):
    global said
    if Path({str(still)!r}).exists() and said < 4_000:
        print(f"line {{said}} {"." * 60}", file=sys.stderr)
        said += 1
        Path({str(done)!r}).touch() if said == 4_000 else None
{LOOP.replace("0.01", "0.0001")}"""
    with Terminal(program=program) as terminal:
        terminal.wait_for(is_drawn)
        terminal.stand_still()
        still.touch()
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not done.exists():
            assert time.monotonic() < deadline, "the loop waits for the terminal"
            time.sleep(0.05)
        terminal.go_on()
        terminal.wait_for(lambda seen: "line 3999 " in seen.text)
        assert b"lines are not shown: the terminal stood still" in terminal.raw


def test_it_draws_a_few_times_a_second() -> None:
    with looping("pass") as terminal:
        terminal.wait_for(is_drawn)
        before, began = terminal.raw.count(b"1,234,567"), time.monotonic()
        time.sleep(2.0)
        frames = terminal.raw.count(b"1,234,567") - before
        assert 1 <= frames <= 5 * (time.monotonic() - began)


def test_no_colour_where_none_is_wanted() -> None:
    with looping("pass") as terminal, looping("pass", no_color="1") as plain:
        for seen in (terminal, plain):
            seen.wait_for(is_drawn)
        assert COLOUR.search(terminal.raw)
        assert not COLOUR.search(plain.raw)


def test_not_in_the_background_of_a_terminal() -> None:
    """`palimpsest learn &`: somebody else types there."""
    program = """
import os, sys
from deploy.live_status import is_drawn_on
print(is_drawn_on(sys.stderr))
os.setpgid(0, 0) if os.fork() == 0 else os.wait()
print(is_drawn_on(sys.stderr))
"""
    child_first = program.replace("os.setpgid(0, 0) if", "sys.stdout.flush(); os.setpgid(0, 0) if")
    with Terminal(program=child_first) as terminal:
        terminal.end()
        assert terminal.lines == ["True", "False", "True"]


def test_a_narrower_terminal_that_breaks_lines_keeps_none_of_them(tmp_path: Path) -> None:
    """tmux breaks what was drawn into more rows, as most terminals on a desktop do."""
    tmux = [require_program("tmux", package="tmux"), "-S", str(tmp_path / "tmux"), "-f", "/dev/null"]
    program = tmp_path / "loop.py"
    turn = "number == 1 and print(*map('line {}'.format, range(40)), sep='\\n', file=sys.stderr)"
    program.write_text(f"def turn(number):\n    {turn}\n{LOOP}")

    def screen() -> list[str]:
        shown = subprocess.run([*tmux, "capture-pane", "-p"], capture_output=True, text=True, check=True).stdout
        return [line.rstrip() for line in shown.splitlines() if line.strip()]

    def wait_for(width: int, lines: int) -> None:
        """So many lines of figures, below the whole of what was said."""
        said = [f"line {number}" for number in range(40 - (ROWS - lines), 40)]
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not (screen()[:-lines] == said and len(screen()) == ROWS and max(map(len, screen())) < width):
            assert time.monotonic() < deadline, "\n".join(screen())
            time.sleep(0.05)

    def tells(width: int) -> bool:
        """What it was told: tmux has been seen to break the lines, under load, and to tell the program nothing."""
        tty = subprocess.run([*tmux, "display", "-p", "#{pane_tty}"], capture_output=True, text=True, check=True).stdout
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            said = subprocess.run(["stty", "-F", tty.strip(), "size"], capture_output=True, text=True, check=True)
            if said.stdout.split()[1] == str(width):
                return True
            time.sleep(0.05)
        return False

    outside = {name: value for name, value in environment().items() if name not in OF_A_TERMINAL}
    variables = {**outside, "PYTHONPATH": str(Path.cwd()), "LC_ALL": "C.UTF-8"}
    start = [*tmux, "new-session", "-d", "-x", "120", "-y", str(ROWS), sys.executable, str(program)]
    for _ in range(3):
        subprocess.run(start, env=variables, check=True)
        try:
            wait_for(120, lines=2)
            # once: of a second one right after the first tmux tells the program later than it breaks the lines
            subprocess.run([*tmux, "resize-window", "-x", "40"], check=True)
            if tells(40):
                wait_for(40, lines=5)
                return
        finally:
            subprocess.run([*tmux, "kill-server"], check=True)
    pytest.fail("tmux told the program of no size")


@pytest.mark.parametrize("label", ["köln", "京" * 80, "a\x1b[2Jb\r\n\u202ec", "e\u0301" * 50, "👩‍👩‍👧‍👦", ""])
def test_no_label_makes_a_line_too_wide(label: str) -> None:
    answer = ANSWER.model_copy(update={"worst_class": WorstClass(name=label, accuracy=1, forgetting=0, n=1)})
    for room in range(1, 200):
        lines = flowing(live_figures(answer), room)
        assert max(line.cell_len for line in lines) <= room
        assert all(character.isprintable() for line in lines for character in line.plain)


@pytest.mark.parametrize("label", ["", "  "])
def test_a_label_of_spaces_alone_is_seen(label: str) -> None:
    answer = ANSWER.model_copy(update={"worst_class": WorstClass(name=label, accuracy=0.5, forgetting=0.1, n=30)})
    (live,) = [figure.value for figure in live_figures(answer) if figure.name == "worst"]
    (full,) = [figure.value for figure in all_figures(answer) if figure.name == "worst class"]
    assert live == f'50.0% "{label}"'
    assert full.startswith(f'"{label}": 50.0% ')


def test_learning_once_more_says_how_much_and_how_long() -> None:
    again = {"state": "relearning", "relearning_records": 1_193, "relearning_seconds": 12.4}
    first, *_ = live_figures(ANSWER.model_copy(update=again))
    assert first.value == "re-learning 1,193 records, about 12 s left"
    first, *_ = live_figures(ANSWER.model_copy(update={**again, "relearning_seconds": None}))
    assert first.value == "re-learning 1,193 records"
    first, *_ = live_figures(ANSWER, is_stopping=True)
    assert first.value == "stopping"


def test_what_is_not_known_is_no_number() -> None:
    names = ("stream", "branch", "palimpsest", "time", "started_at", "device")
    little = StatusAnswer(state="starting", **{name: getattr(ANSWER, name) for name in names})
    shown = {figure.name: figure.value for figure in live_figures(little)}
    assert shown.pop("state") == "starting"
    assert set(shown.values()) == {"-"}


def test_figures_stay_at_their_place() -> None:
    """What a number grows by does not move what follows it."""
    few = ANSWER.model_copy(update={"records_consumed": 1, "records_per_second": 0.0, "lag_records": 0})
    before, after = (Text("\n").join(flowing(live_figures(answer), 200)).plain for answer in (few, ANSWER))
    assert [before.index(name) for name in ("rate", "lag", "accuracy")] == [
        after.index(name) for name in ("rate", "lag", "accuracy")
    ]


def test_lines_are_whole_and_the_oldest_go_first() -> None:
    queue = LineQueue(sys.stderr)
    queue.write("one\ntw")
    assert queue.take() == ["one"]
    queue.write("o\n")
    assert queue.take() == ["two"]
    queue.write("".join(f"{number}\n" for number in range(1_500)) + "rest")
    said = queue.take(rest=True)
    assert said[0] == "... 500 lines are not shown: the terminal stood still"
    assert (said[1], said[-2], said[-1]) == ("500", "1499", "rest")
    assert queue.take(rest=True) == []
