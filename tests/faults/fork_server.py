"""A process that has imported everything once, and forks a child for every learner: a start costs no seconds of import.

Reads requests from stdin, one JSON object a line, and answers on stdout:

    {"run": 3, "arguments": ["learn", ...], "environment": {...}, "out": FILE}   ->   {"run": 3, "pid": 4711}
    and when the child has ended   {"run": 3, "code": 0, "peak_kib": 301000}     (code: minus the signal that killed it)

The children are processes like any others: own connections, own threads, killed with -9 for real. The server has no
thread and no connection when it forks. It ends with its stdin, and its children with it.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import selectors
import signal
from pathlib import Path
from typing import Any

from pipeline.codec.record_decoder import RecordDecoder
from pipeline.record import Record
from pipeline.settings import LearnerSettings
from pipeline.stream_learner import StreamLearner
from tests.faults import learner_entry
from tests.faults.fault_stream import mixed
from tests.forked_process import die_with, end_as


def main() -> None:
    """Serve; in a child, be the learner."""
    for module in (
        "deploy.commands.learn",
        "deploy.commands.predict",
        "deploy.console",
        "deploy.learning",
        "deploy.predicting",
        "deploy.restructuring_worker",
        "deploy.worker_console",
    ):
        importlib.import_module(module)
    _warm_up()
    threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    # jemalloc (of pyarrow) sees to its own thread around a fork.
    others = [name for name in threads[1:] if name != "jemalloc_bg_thd"]
    assert not others, f"threads {others}: a fork would lose them, and may find their locks held"
    gc.collect()
    gc.freeze()
    request = _serve()
    if request is not None:
        end_as(lambda: learner_entry.main(request["arguments"], os.environ))
    os._exit(0)


def _warm_up() -> None:
    """A few updates, since torch and others import much at their first use only: seconds."""
    learner = StreamLearner(LearnerSettings(device="cpu", threads=1))
    decoder = RecordDecoder(learner.settings.input)
    for number, written in enumerate(mixed(40, seed=0)):
        record = Record(topic="warm-up", partition=0, offset=number, value=written.value, headers=written.headers)
        if learner.add(decoder.decode(record)):
            learner.step(learner.assembler.take())
    assert learner.records_trained > 0


def _serve() -> dict[str, Any] | None:
    """Until stdin ends; in a child: the request that it is for."""
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: dict[int, int] = {}
    unread = b""
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        selector.register(wake_read, selectors.EVENT_READ)
        _answer({"ready": True})
        while True:
            ready = {key.fd for key, _ in selector.select()}
            if wake_read in ready:
                os.read(wake_read, 4096)
                _tell_ended(children)
            if 0 in ready:
                read = os.read(0, 1 << 16)
                if not read:
                    return None
                *lines, unread = (unread + read).split(b"\n")
                for line in lines:
                    request: dict[str, Any] = json.loads(line)
                    parent = os.getpid()
                    pid = os.fork()
                    if pid == 0:
                        signal.set_wakeup_fd(-1)
                        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                        os.close(wake_read)
                        os.close(wake_write)
                        _become(request, parent)
                        return request
                    children[pid] = request["run"]
                    _answer({"run": request["run"], "pid": pid})


def _tell_ended(children: dict[int, int]) -> None:
    while children:
        pid, status, usage = os.wait4(-1, os.WNOHANG)
        if pid == 0:
            return
        code = os.waitstatus_to_exitcode(status)
        _answer({"run": children.pop(pid), "code": code, "peak_kib": usage.ru_maxrss})


def _become(request: dict[str, Any], parent: int) -> None:
    """A process group of its own, input from nowhere, output into a file, dead when the server dies."""
    os.setpgid(0, 0)
    die_with(parent)
    nowhere = os.open(os.devnull, os.O_RDONLY)
    out = os.open(request["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(nowhere, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.close(nowhere)
    os.close(out)
    os.environ.update(request["environment"])


def _answer(answer: dict[str, Any]) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
