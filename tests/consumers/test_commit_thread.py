"""Both places where commits are carried out keep one contract; the thread lets its caller go on meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from consumers.commit_thread import CommitAtOnce, Commits, CommitThread


@pytest.fixture(params=[CommitThread, CommitAtOnce])
def commits(request: pytest.FixtureRequest) -> Iterator[Commits[int]]:
    made: Commits[int] = request.param()
    yield made
    made.close()


def nothing() -> None:
    pass


def test_what_came_of_it_is_told_once(commits: Commits[int]) -> None:
    assert commits.collect() is None
    assert commits.wait(nothing) is None
    commits.begin(lambda: 3)
    assert commits.wait(nothing) == 3
    assert commits.collect() is None
    assert not commits.is_busy


def test_what_has_ended_is_busy_until_it_is_collected(commits: Commits[int]) -> None:
    """Between a look that found nothing and the next question it may end: nothing else may be begun then."""
    ended = threading.Event()

    def work() -> int:
        ended.set()
        return 3

    commits.begin(work)
    if isinstance(commits, CommitThread):
        assert ended.wait(30)
    assert commits.is_busy
    assert commits.wait(nothing) == 3
    assert not commits.is_busy


def test_what_it_raises_is_raised_where_it_is_taken_in(commits: Commits[int]) -> None:
    def fail() -> int:
        raise OSError(28, "No space left on device")

    commits.begin(fail)
    with pytest.raises(OSError, match="No space"):
        commits.wait(nothing)
    commits.begin(lambda: 4)
    assert commits.wait(nothing) == 4


def test_more_may_begin_after_the_end(commits: Commits[int]) -> None:
    commits.begin(lambda: 1)
    commits.close()
    commits.close()
    assert commits.collect() is None
    commits.begin(lambda: 2)
    assert commits.wait(nothing) == 2


def test_the_caller_goes_on_meanwhile_and_shows_life_while_it_waits() -> None:
    commits: CommitThread[str] = CommitThread()
    may_end = threading.Event()
    ticks: list[Callable[[], None]] = []

    def work() -> str:
        assert may_end.wait(30)
        return threading.current_thread().name

    def tick() -> None:
        ticks.append(nothing)
        may_end.set()

    commits.begin(work)
    assert commits.is_busy
    assert commits.collect() is None
    name = commits.wait(tick)
    assert name is not None
    assert name.startswith("palimpsest-commit")
    assert ticks
    commits.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("palimpsest-commit")]
