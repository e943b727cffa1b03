"""Who runs this, as the operating system calls them."""

from __future__ import annotations

import getpass
import os


def user_name() -> str:
    """In a container there may be a number without a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
