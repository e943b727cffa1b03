"""A process is recognised by its command line, also in the moments in which it has none."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from deploy.broker_process import carries_argument

# Becomes the same program again and again, and has no command line for a moment each time.
AGAIN = 'exec /bin/sh -c "$0" "$0" "$1"'


KERNEL_THREAD = 2  # where Linux is not told to hide it, as in a container


def is_kernel_thread() -> bool:
    name = Path(f"/proc/{KERNEL_THREAD}/comm")
    return name.exists() and name.read_text() == "kthreadd\n"


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="only Linux shows processes without a command line")
def test_a_process_is_recognised_while_it_becomes_another_program() -> None:
    process = subprocess.Popen(["/bin/sh", "-c", AGAIN, AGAIN, "mark"])
    try:
        assert all(carries_argument(process.pid, "mark") for _ in range(5_000))
        assert not carries_argument(process.pid, "another")
    finally:
        process.kill()
        process.wait()
    assert not carries_argument(process.pid, "mark")


@pytest.mark.parametrize("waited_for", [True, False])
def test_a_process_that_has_ended_is_not_taken_for_running(waited_for: bool) -> None:
    process = subprocess.Popen(["/bin/sh", "-c", "kill -STOP $$", "sh", "mark"])
    try:
        assert carries_argument(process.pid, "mark")
        process.kill()
        if waited_for:
            process.wait()
        else:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
        assert not carries_argument(process.pid, "mark")
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(not is_kernel_thread(), reason="this machine shows no thread of the kernel's own")
def test_a_thread_of_the_kernel_is_known_at_once() -> None:
    """It never has a command line. A process id of before a reboot may be one's."""
    began = time.monotonic()
    assert not carries_argument(KERNEL_THREAD, "mark")
    assert time.monotonic() - began < 2
