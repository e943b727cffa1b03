"""Who may work on a state folder beside whom. Locks of one process on two descriptors exclude each other as those of
two processes do; that a killed process lets go is shown with a real one."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from consumers.state_lock import LOCK_FILE, LockStopped, exclusive_lock, shared_lock
from pipeline.user_error import UserError


def test_learners_work_beside_each_other_and_an_erasure_alone(tmp_path: Path) -> None:
    with (
        shared_lock(tmp_path),
        shared_lock(tmp_path, wait_seconds=0),
        pytest.raises(
            UserError,
            match=f"a learner, a rewind, a restructuring or another erasure works on {tmp_path}: stop it, erase",
        ),
    ):
        exclusive_lock(tmp_path).__enter__()
    with exclusive_lock(tmp_path), pytest.raises(UserError, match="an erasure works on"):
        shared_lock(tmp_path, wait_seconds=0.1).__enter__()
    with exclusive_lock(tmp_path), pytest.raises(UserError, match="stop it, erase"):
        exclusive_lock(tmp_path).__enter__()
    with exclusive_lock(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]


def test_a_learner_waits_for_an_erasure_to_end(tmp_path: Path) -> None:
    began, ended = threading.Event(), threading.Event()

    def learn() -> None:
        began.set()
        with shared_lock(tmp_path):
            ended.set()

    thread = threading.Thread(target=learn)
    with exclusive_lock(tmp_path):
        thread.start()
        assert began.wait(10)
        assert not ended.is_set()
    thread.join(10)
    assert ended.is_set()


def test_a_learner_that_waits_hears_a_stop(tmp_path: Path) -> None:
    stop = threading.Event()
    with shared_lock(tmp_path, stop=stop):
        stop.set()
    with shared_lock(tmp_path, stop=stop):
        pass  # it need not wait, and the stop is for others to hear
    with exclusive_lock(tmp_path), pytest.raises(LockStopped):
        shared_lock(tmp_path, stop=stop).__enter__()


def test_a_killed_process_lets_go(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from consumers.state_lock import shared_lock\n"
        "with shared_lock(Path(sys.argv[1])):\n    print('locked', flush=True)\n    time.sleep(100)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match="a learner, a rewind, a restructuring or another erasure works on"):
            exclusive_lock(tmp_path).__enter__()
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    deadline = time.monotonic() + 10
    while True:
        try:
            with exclusive_lock(tmp_path):
                return
        except UserError:
            assert time.monotonic() < deadline, "the lock outlived its process"


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file or directory; give another --state"):
        shared_lock(tmp_path / "missing").__enter__()
