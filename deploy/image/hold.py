"""`palimpsest`, for a supervisor that starts whatever ends again: what no restart can mend is not ended, but held.

`python -m deploy.image.hold learn --stream ...` runs `palimpsest learn --stream ...` and ends as it did. Where that is
with a code that a person has to look at (deploy/exit_codes.py), it says so and waits: Docker Compose knows exit codes
in none of its restart policies, so two learners of one branch would end each other for ever, and one whose log has
lost records would start a thousand times a day. The container stays, its health says `unhealthy`, and it starts again
when somebody restarts it, or the machine.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import FrameType

from deploy.exit_codes import FOR_A_PERSON


def run_held(command: Sequence[str]) -> int:
    """Its exit code, or 128 and the signal that ended it, once it may be told. Signals go on to it.

    From the main thread alone, since it takes SIGTERM and SIGINT over.
    """
    told_to_end = threading.Event()
    child: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, _frame: FrameType | None) -> None:
        told_to_end.set()
        if child is not None:
            child.send_signal(number)  # nothing, where it has ended

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    if told_to_end.is_set():
        return 0
    child = subprocess.Popen(command)
    if told_to_end.is_set():  # between the two lines above
        child.send_signal(signal.SIGTERM)
    code = child.wait()
    code = 128 - code if code < 0 else code
    if code in FOR_A_PERSON and not told_to_end.is_set():
        print(
            f"palimpsest: ended with exit code {code}, which no restart mends: not started again. Put right what the "
            "line above names, and restart this container",
            file=sys.stderr,
            flush=True,
        )
        told_to_end.wait()
    return code


if __name__ == "__main__":
    sys.exit(run_held(["palimpsest", *sys.argv[1:]]))
