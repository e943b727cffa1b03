from __future__ import annotations

import os
import signal

import pytest

from deploy.stop_signals import stop_on_signals


def send(number: int) -> None:
    """To this process; Python runs the handler before the next line, since this is the main thread."""
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_sets_the_event_and_the_next_acts_as_ever(number: int) -> None:
    before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)}
    with stop_on_signals() as stop:
        assert not stop.is_set()
        send(number)
        assert stop.is_set()
        # A second SIGTERM would end this very process: its handler is the one from before again.
        assert {name: signal.getsignal(name) for name in before} == before
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_afterwards_everything_is_as_before() -> None:
    before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)}
    with stop_on_signals() as stop:
        assert {name: signal.getsignal(name) for name in before} != before
    assert not stop.is_set()
    assert {name: signal.getsignal(name) for name in before} == before
