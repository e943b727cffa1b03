"""What a test does with each block and each command of the pages: it is run, checked without being run, or only shown.

Nothing is passed over silently: a tag, a program or a page that stands in none of these tables fails its test.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tests.docs.command_lines import check_files, check_make, check_module, check_palimpsest
from tests.docs.shell_commands import Command

# The tags of blocks.
SHELL = ("sh", "console")
FILES = ("python", "yaml", "java")  # with a name on the first line they are saved under it; Python without one is run
CHECKED = (*FILES, "json")
SHOWN = {
    "text": "what a program says, or a picture: a console block is what is compared",
    "ini": "a unit of systemd, which runs nothing here",
    "promql": "an expression for Prometheus; those of rules and panels run in their own tests",
}

# Run for real. Everything that is not of our making is a small program that every reader has, but for kcat and javac,
# without which the page is skipped, loudly.
RUN = frozenset(
    [
        *("palimpsest", "python", "pytest", "curl", "kcat", "javac", "java"),
        *("cd", "export", "echo", "printf", "cat", "cp", "ls", "mkdir", "rm", "touch", "head", "tail", "grep", "sort"),
        *("wc", "du", "sed", "tee", "sleep", "wait", "kill", "test", "true", "eval", "source"),
    ]
)
SYSTEM_PACKAGES = {"kcat": "kcat", "javac": "default-jdk-headless", "curl": "curl"}


@dataclass(frozen=True, slots=True, kw_only=True)
class NotRun:
    """A call that is looked at and not made."""

    call: re.Pattern[str]
    why: str
    check: Callable[[Sequence[str]], None]  # gets the arguments


def _not_run(call: str, why: str, check: Callable[[Sequence[str]], None]) -> NotRun:
    return NotRun(call=re.compile(call), why=why, check=check)


NOT_RUN = (
    _not_run(r"make\b", "installs, or runs for minutes to hours", check_make),
    _not_run(r"(docker|helm|kubectl|kind)\b", "wants a container daemon or a cluster", check_files),
    _not_run(
        r"(promtool|prometheus|systemctl|journalctl)\b", "a service of the machine; tests of its own", check_files
    ),
    _not_run(
        r"kafka-(acls|topics|configs)\.sh\b", "of Kafka's own distribution, which is not needed here", check_files
    ),
    _not_run(r"(pip|python -m pip)\b", "wants the package index", check_files),
    _not_run(r"(/opt/\S+|useradd|install|python3 -m venv)( |$)", "sets up a machine, as root", check_files),
    _not_run(r"git\b", "wants the network, or another checkout", check_files),
    _not_run(r"mlflow (ui|server|models)\b", "a server that tests of their own start", check_files),
    _not_run(
        r"python -m (benchmarks\.\w+|tests\.faults\.soak)\b",
        "takes minutes to hours, or data sets; tests/benchmarks runs each small",
        lambda arguments: check_module(arguments[1:]),
    ),
    _not_run(r"palimpsest demo\b", "over a minute; tests/deploy/test_demo.py runs it", check_palimpsest),
    _not_run(r"palimpsest broker stop\b", "the broker serves the other pages", check_palimpsest),
)

# Blocks that show commands beside each other and are no session: every command is checked, none run.
LISTS = {
    ("README.md", "palimpsest check --stream digits"): "what there is, with `...`; docs/operator runs each",
    ("README.md", "palimpsest models --stream digits"): "as above",
    ("docs/operator/deploy.md", "python3 -m venv"): "sets up a machine, as root",
    ("docs/operator/deploy.md", "cd deploy"): "goes on with containers",
    ("docs/operator/terminal.md", "palimpsest status --stream digits"): "of a learner that runs; tests/deploy asks one",
}

# Pages whose commands are run by `make test-slow`.
SLOW = {
    "docs/operator/predictors.md": "versions: MLflow is imported by each process that asks it",
    "docs/operator/promotion.md": "versions, and two evaluations of each",
    "docs/operator/restructuring.md": "two jobs",
    "docs/operator/rewind.md": "five learners",
    "docs/research/add-a-backbone.md": "programs of a copy of the repository, which import all anew",
    "docs/research/add-a-codec.md": "as above",
    "docs/research/add-a-data-set.md": "as above",
    "docs/research/golden-losses.md": "as above",
    "docs/research/r-matrix.md": "as above",
    "docs/research/reproduce-the-tables.md": "as above",
}

# Modules of ours that a page may run by themselves; they write into the repository.
_OURS = ("pipeline", "consumers", "producers", "model_store", "deploy", "benchmarks", "tests")

# Pages whose YAML may be another program's: manifests, scrape configs. Settings of ours are checked there, too.
FOREIGN_YAML = ("docs/operator/deploy.md", "docs/operator/alerts.md", "docs/operator/dashboards.md")


def not_run(call: Sequence[str]) -> NotRun | None:
    """Which of these a call is; None: it is run."""
    line = " ".join(call)
    return next((entry for entry in NOT_RUN if entry.call.match(line)), None)


def is_list(command: Command) -> bool:
    """Whether the block that it stands in is one of `LISTS`."""
    return any(command.block.page == page and command.block.text.startswith(beginning) for page, beginning in LISTS)


def is_run(command: Command) -> bool:
    """All that it calls is run; a command is made as a whole or not at all."""
    return not is_list(command) and all(not_run(call) is None for call in command.calls)


def wants_a_copy(page: str, commands: Iterable[Command]) -> bool:
    """Whether it is for those who work on the repository: it is followed in a copy of it."""
    modules = [
        call[2] for command in commands if is_run(command) for call in command.calls if call[:2] == ["python", "-m"]
    ]
    return page.startswith("docs/research/") or any(module.split(".")[0] in _OURS for module in modules)


def stays(command: Command) -> bool:
    """It goes on until somebody ends it: a reader puts it behind "&", or into a terminal of its own."""
    if command.in_background:
        return True
    ends = {"--until-idle", "--max-records", "--help", "-h"}
    return any(
        call[:1] == ["palimpsest"]
        and call[1:2]
        and call[1] in ("learn", "predict", "restructure")
        and not ends & {*call}
        for call in command.calls
    )
