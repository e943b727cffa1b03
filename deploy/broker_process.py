"""The broker's operating-system process: started apart from us, recognised again, and ended."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

_POLL_SECONDS = 0.05
# A process that becomes another program shows no command line for so long at most.
_UNNAMED_SECONDS = 5.0
# Options that a user's shell gives every Java program change ours, or print a line of their own to its output.
_FOREIGN_JAVA_OPTIONS = ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "CLASSPATH")


def java_environment() -> dict[str, str]:
    """Our environment for a Java program: no options of others, and UTF-8 file names whatever the locale is."""
    environment = {name: value for name, value in os.environ.items() if name not in _FOREIGN_JAVA_OPTIONS}
    return {**environment, "LC_ALL": "C.UTF-8"}


def start_detached(command: Sequence[str | Path], output: Path) -> int:
    """Run `command` in a session of its own, as an orphan that survives us; returns its process id.

    A shell in between starts it and leaves: the process then belongs to nobody here, so it is the same thing whether
    this program goes on (a test), ends (the command line) or is killed. `output` is written anew.
    """
    script = '"$@" </dev/null >"$PALIMPSEST_BROKER_OUTPUT" 2>&1 & echo $!'
    finished = subprocess.run(
        ["/bin/sh", "-c", script, "sh", *map(str, command)],
        env={**java_environment(), "PALIMPSEST_BROKER_OUTPUT": str(output)},
        cwd="/",  # do not keep the folder that we happen to stand in busy
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        start_new_session=True,
    )
    return int(finished.stdout)


def carries_argument(pid: int, argument: str) -> bool:
    """Whether process `pid` lives and has `argument` on its command line.

    A process id alone proves nothing: after a crash or a reboot it may be a stranger's, and a stranger is never killed.
    """
    if Path("/proc/self/cmdline").exists():
        return os.fsencode(argument) in _command_line(pid).split(b"\0")
    listed = subprocess.run(["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True)
    return argument in listed.stdout


def _command_line(pid: int) -> bytes:
    """What it was started with, each argument ended by a zero; empty for one that has ended, or is the kernel's own.

    It is empty as well for a moment in the midst of `exec`, by which a shell becomes Java. One that has a program all
    the same is looked at again.
    """
    process = Path(f"/proc/{pid}")
    deadline = time.monotonic() + _UNNAMED_SECONDS
    while True:
        try:
            if arguments := (process / "cmdline").read_bytes():
                return arguments
            (process / "exe").readlink()
        except OSError:
            return b""
        if time.monotonic() > deadline:
            return b""
        time.sleep(_POLL_SECONDS / 10)


def end_process(pid: int, argument: str, signal_number: signal.Signals, deadline_seconds: float) -> bool:
    """Send the signal if the process still carries `argument`, and wait; returns whether it has gone."""
    born = _birth(pid)
    if born is None or not carries_argument(pid, argument):
        return True
    try:
        os.kill(pid, signal_number)
    except ProcessLookupError:
        return True
    deadline = time.monotonic() + deadline_seconds
    while _birth(pid) == born:
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _birth(pid: int) -> str | None:
    """When process `pid` began, in the system's own words; None once it has ended and let its files and port go."""
    if Path("/proc/self/stat").exists():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The name, in parentheses, may hold anything; after it come the state (field 3) and the start (field 22).
        fields = stat.rpartition(")")[2].split()
        # The command line of a dying process is empty before its port is closed; a zombie has closed everything.
        return None if fields[0] in "ZX" else fields[19]
    listed = subprocess.run(["ps", "-o", "state=,lstart=", "-p", str(pid)], capture_output=True, text=True)
    state, _, start = listed.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else start.strip()
