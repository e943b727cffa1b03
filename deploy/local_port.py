"""Ports of this machine: is this one free, which one is, and which one a server of ours gets."""

from __future__ import annotations

import itertools
import random
import socket
from collections.abc import Callable
from typing import TypeVar

from pipeline.user_error import UserError

Server = TypeVar("Server")

LOCAL_HOST = "127.0.0.1"

# Below the ports that systems give to connections going out (Linux: from 32768 on): one of those that is free now may
# be such a connection's by the time that a server has started and listens on it.
_CHOSEN_FROM = range(20_000, 32_768)
_TRIES = 100


def bind_once(port: int) -> int:
    """Bind `port` (0: any free one) and let it go; returns the port. Raises `OSError` where it cannot be had."""
    with socket.socket() as listener:
        # As the broker does: a port whose last connections are still closing down is free to listen on.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOCAL_HOST, port))
        listener.listen(1)
        bound: int = listener.getsockname()[1]
        return bound


def free_port() -> int:
    """One that nothing has."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """So many, all different, that nothing has; drawn at random: whoever draws at the same time most likely draws
    others. Raises `OSError` where there are none."""
    drawn = random.SystemRandom().sample(_CHOSEN_FROM, _TRIES)
    free = list(itertools.islice(filter(is_free, drawn), count))
    return free if len(free) == count else [bind_once(0) for _ in range(count)]


def is_free(port: int) -> bool:
    try:
        bind_once(port)
    except OSError:
        return False
    return True


def answers(port: int) -> bool:
    """Whether something accepts connections on `port`."""
    try:
        with socket.create_connection((LOCAL_HOST, port), timeout=1):
            return True
    except OSError:
        return False


def on_port(asked: int | None, usual: int, serve: Callable[[int], Server]) -> Server:
    """`serve(port)` on the port that was asked for, or not at all. Nobody asked for the usual one: where another
    process of ours on this machine has it, a free one does as well."""
    if asked is not None:
        return serve(asked)
    try:
        return serve(usual)
    except UserError:
        return serve(0)
