"""`palimpsest` for the pages without seconds of import each time: a process that imported it once, and forks.

    python -m tests.docs.fork_server SOCKET

Each connection brings one JSON line {"arguments", "folder", "environment"} with the three standard streams, and is told
{"pid"}, then {"code"} (minus the signal that killed it). `tests/docs/palimpsest_shim.py` is the other end. A connection
that is closed before its child has ended kills the child. It ends with its stdin, and its children with it.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import threading
import traceback
from typing import Any

_PR_SET_PDEATHSIG = 1
_IMPORTED = (
    "deploy.commands.learn",
    "deploy.commands.predict",
    "deploy.commands.produce",
    "deploy.console",
    "deploy.learning",
    "deploy.predicting",
    "deploy.restructuring_worker",
    "deploy.worker_console",
    "kafka.admin",
    "producers.datasets",
    "sklearn.datasets",
)


def main(address: str) -> None:
    """Serve; in a child, be `palimpsest`."""
    for module in _IMPORTED:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    arguments = _serve(address)
    # Nothing is left to be taken down, and modules that were frozen by `gc` complain when they are.
    os._exit(0 if arguments is None else _command(arguments))


def _command(arguments: list[str]) -> int:
    """The exit code, when all that a process does before it ends was done."""
    from deploy import cli

    sys.argv = ["palimpsest", *arguments]
    code: object = 0
    try:
        cli.main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else 0


def _serve(address: str) -> list[str] | None:
    """Until stdin ends; in a child: its arguments."""
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: dict[int, socket.socket] = {}
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as selector:
        listener.bind(address)
        listener.listen(16)
        for source in (0, wake_read, listener):
            selector.register(source, selectors.EVENT_READ)
        print("ready", flush=True)
        while True:
            for key, _ in selector.select():
                if key.fileobj == 0:
                    return None
                if key.fileobj == wake_read:
                    os.read(wake_read, 4096)
                    _tell_ended(children, selector)
                elif key.fileobj is listener:
                    connection, _ = listener.accept()
                    request, streams = _request(connection)
                    parent = os.getpid()
                    pid = os.fork()
                    if pid == 0:
                        signal.set_wakeup_fd(-1)
                        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                        for held in (wake_read, wake_write, connection.detach(), listener.detach()):
                            os.close(held)
                        _become(request, streams, parent)
                        return list(request["arguments"])
                    for stream in streams:
                        os.close(stream)
                    children[pid] = connection
                    selector.register(connection, selectors.EVENT_READ)
                    _answer(connection, {"pid": pid})
                else:  # closed before its child has ended
                    for pid, connection in children.items():
                        if connection is key.fileobj:
                            os.kill(pid, signal.SIGKILL)
                    selector.unregister(key.fileobj)


def _request(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    data, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    while not data.endswith(b"\n"):
        data += connection.recv(1 << 20)
    request: dict[str, Any] = json.loads(data)
    return request, streams


def _tell_ended(children: dict[int, socket.socket], selector: selectors.BaseSelector) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        connection = children.pop(pid)
        if connection.fileno() in selector.get_map():
            selector.unregister(connection)
        _answer(connection, {"code": os.waitstatus_to_exitcode(status)})
        connection.close()


def _become(request: dict[str, Any], streams: list[int], parent: int) -> None:
    """In the caller's folder and environment, with its streams; dead when the server dies."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it had died before we asked to die with it
        os._exit(1)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])


def _answer(connection: socket.socket, answer: dict[str, Any]) -> None:
    try:
        connection.sendall(json.dumps(answer).encode() + b"\n")
    except OSError:
        return  # whoever asked is gone: closed, and its child killed


if __name__ == "__main__":
    main(sys.argv[1])
