"""What `palimpsest` answers to whoever started it: the exit codes, in one place.

0    done, also where a signal ended it
1    a bug of ours, with its traceback
2    something the user can put right: an option, a setting, a missing topic, a folder of another stream
3    nothing came of it: a job was refused, or its result is worse than what there is; the gate refused a promotion
4    a newer learner has taken over this stream and branch; nothing is lost
5    the log lost what was to be read next (`--accept-gap` goes on without it) or holds what cannot be read, or the
     brokers refuse for good what has to be told: a person must decide
6    the brokers, or MLflow where a command needs it, are away; starting it again later goes on where it stopped
7    the last snapshot could not be written; what came since the one before is learnt again at the next start
8    the weights have diverged; the newest snapshot is from before, and the same settings lead there again
9    `status`: no learner answers
130  interrupted before it could stop by itself
"""

from __future__ import annotations

NOT_OFFERED = 3
FENCED = 4
REFUSED = 5
BROKERS_AWAY = 6
DISK_REFUSED = 7
DIVERGED = 8
NO_LEARNER = 9
INTERRUPTED = 130

# Those that no restart mends, whoever started it and whenever: a supervisor that restarts all the same makes it worse.
FOR_A_PERSON = frozenset({FENCED, REFUSED, DIVERGED})

# In the help of the commands that can end so.
EPILOG = """\b
Exit codes:
  0  done, also where SIGTERM or Ctrl-C ended it
  2  something you can put right: an option, a setting, a topic, a folder
  4  a newer learner has taken over this stream and branch
  5  the log lost what was to be read next, or the brokers refuse for good
  6  the brokers are away: start it again later
  7  the last snapshot could not be written
  8  the weights have diverged: change the settings, start from the snapshot before"""


def exit_code(error: Exception) -> int | None:
    """The code for what ended a command. None: a bug, whose traceback must be seen."""
    # Imported only now: the command that failed has them anyway, and `palimpsest --help` needs none of them.
    from consumers.commit_log import BrokerUnavailable, LearnerFenced, OutboxRefused
    from consumers.record_source import LogTruncated, SourceUnavailable
    from model_store.registry import RegistryUnavailable
    from pipeline.poison import WeightsDiverged
    from pipeline.user_error import UserError

    match error:
        case UserError():
            return error.exit_code
        case LearnerFenced():
            return FENCED
        case LogTruncated() | OutboxRefused():
            return REFUSED
        case BrokerUnavailable() | SourceUnavailable() | RegistryUnavailable():
            return BROKERS_AWAY
        case WeightsDiverged():
            return DIVERGED
    return None


def one_line(error: BaseException | str) -> str:
    """A message without line breaks: one line for a terminal, a log collector, a pager."""
    return " ".join(str(error).split())
