"""What a forked child is to do: an entry point's work, and all that a process does before it ends by itself."""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """A child that its server's death left alone would hold ports and locks. `parent`: the process that forked it."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it had died before we asked to die with it
        os._exit(1)


def end_as(main: Callable[[], object]) -> NoReturn:
    """Call it, and end with its exit code when its threads have ended, its handlers were called and all is written.

    Nothing else is taken down: modules that were frozen by `gc` complain when they are.
    """
    code: object = 0
    try:
        main()
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
    os._exit(code if isinstance(code, int) else 0)
