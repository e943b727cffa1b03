"""What a press of Tab offers, asked as a shell asks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.deploy.command_line import environment, palimpsest

HEAVY = ("torch", "mlflow", "kafka", "rich", "pydantic", "yaml")
PROGRAM = f"""
import sys
from deploy.cli import main
try:
    main()
finally:
    print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""


def offered(words: str, *, cwd: Path, shell: str = "zsh", learners: Path | None = None) -> list[str]:
    """For the last of the words."""
    variables = {"_PALIMPSEST_COMPLETE": f"{shell}_complete", "COMP_WORDS": f"palimpsest {words}"}
    variables |= {"COMP_CWORD": str(len(words.split(" "))), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment(PALIMPSEST_LEARNERS_DIR=str(learners or cwd / "nobody"), **variables),
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == "[]\n", "a shell waits for it"
    lines = done.stdout.splitlines()
    return [name for kind, name in zip(lines[0::3], lines[1::3], strict=False) if kind == "plain"]


def test_commands_options_and_choices(tmp_path: Path) -> None:
    assert offered("s", cwd=tmp_path) == ["settings", "snapshots", "status"]
    assert offered("broker st", cwd=tmp_path) == ["start", "status", "stop"]
    assert offered("learn --fr", cwd=tmp_path) == ["--from-state", "--from-snapshot", "--from-offsets"]
    assert offered("completion ", cwd=tmp_path) == ["bash", "zsh", "fish"]
    assert offered("produce --dataset ", cwd=tmp_path) == ["cifar10", "digits", "fashion-mnist", "mnist"]
    assert offered("produce --schedule b", cwd=tmp_path) == ["blurred"]
    assert offered("predict --role ", cwd=tmp_path) == ["champion", "challenger"]


def test_streams_and_branches_that_are_known_here(tmp_path: Path) -> None:
    (tmp_path / "runs" / "mail" / "snapshots").mkdir(parents=True)
    (tmp_path / "runs" / "$(touch harm)" / "snapshots").mkdir(parents=True)
    (tmp_path / "runs" / "demo.log").touch()
    learners = tmp_path / "learners"
    note = {"pid": os.getpid(), "started_at": 0.0, "url": "http://127.0.0.1:1", "state": str(tmp_path)}
    learners.mkdir()
    for stream, branch in (("digits", "main"), ("digits", "trial"), ("mnist", "old")):
        text = json.dumps({**note, "stream": stream, "branch": branch, "host": os.uname().nodename})
        (learners / f"{stream}-{branch}.json").write_text(text)

    def asked(words: str) -> list[str]:
        return offered(words, cwd=tmp_path, learners=learners)

    assert asked("status --stream ") == ["digits", "mail", "mnist"]
    assert asked("learn --stream m") == ["mail", "mnist"]
    assert asked("status --stream digits --branch ") == ["main", "trial"]
    assert asked("status --branch ") == ["main", "old", "trial"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_printed_for_each_shell(shell: str) -> None:
    done = palimpsest("completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"_PALIMPSEST_COMPLETE={shell}_complete" in done.stdout
    unknown = palimpsest("completion", "csh")
    assert (unknown.returncode, unknown.stdout) == (2, "")


def test_bash_itself_completes(tmp_path: Path) -> None:
    """The printed script, in a real bash, with `palimpsest` on its PATH."""
    program = tmp_path / "palimpsest"
    program.write_text(f"#!{sys.executable}\nfrom deploy.cli import main\nmain()\n")
    program.chmod(0o755)
    script = """
eval "$(palimpsest completion bash)"
complete -p palimpsest
COMP_WORDS=(palimpsest learn --no) COMP_CWORD=2
_palimpsest_completion palimpsest --no learn
echo "${COMPREPLY[@]}"
"""
    where: Mapping[str, str] = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path) or str(Path.cwd()),
    }
    done = subprocess.run(
        ["bash", "--norc", "-c", script], env=environment(**where), capture_output=True, text=True, check=True
    )
    registered, words = done.stdout.splitlines()
    assert registered.endswith("_palimpsest_completion palimpsest")
    assert words == "--no-live"
    assert done.stderr == ""
