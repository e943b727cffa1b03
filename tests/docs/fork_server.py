"""`palimpsest` for the pages without seconds of import each time: a process that imported it once, and forks.

    python -m tests.docs.fork_server SOCKET

Each connection brings one JSON line {"arguments", "folder", "environment"} with the three standard streams, and is told
{"pid"}, then {"code"} (minus the signal that killed it). `tests/docs/palimpsest_shim.py` is the other end. A connection
that is closed before its child has ended kills the child. It ends with its stdin, and its children with it.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
from typing import Any

from tests.forked_process import die_with, end_as

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
    if arguments is not None:
        end_as(lambda: _palimpsest(arguments))
    os._exit(0)


def _palimpsest(arguments: list[str]) -> None:
    from deploy import cli

    sys.argv = ["palimpsest", *arguments]
    cli.main()


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
    die_with(parent)
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
