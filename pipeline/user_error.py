"""The one exception for what a user can put right."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can put right: a wrong setting, a missing topic, a folder of another stream.

    The message is one line that names what is wrong, the value, and the way out. The command line prints it
    and exits with `exit_code`; everything else that is raised is a bug of ours and shows its traceback.
    """

    exit_code = 2
