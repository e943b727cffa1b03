"""deploy/Dockerfile: linted, its sources are there, and what it says of us is true."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path, PurePosixPath

import click
import pytest
from dockerfile_parse import DockerfileParser

from deploy.image import healthy
from deploy.settings import load_settings
from tests.deploy.command_line_check import parsed

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions by the name of the stage; "" holds what comes before the first."""
    found: dict[str, list[tuple[str, str]]] = {"": []}
    name = ""
    with DOCKERFILE.open("rb") as file:
        structure = DockerfileParser(fileobj=file).structure
    for step in structure:
        if step["instruction"] == "FROM":
            name = step["value"].partition(" AS ")[2]
            found[name] = []
        if step["instruction"] != "COMMENT":
            found[name].append((step["instruction"], step["value"]))
    return found


def values(steps: list[tuple[str, str]], instruction: str) -> list[str]:
    return [value for name, value in steps if name == instruction]


def test_hadolint_finds_nothing() -> None:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert program is not None, "of the test extra"
    answer = subprocess.run([program, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout


def test_it_has_its_stages(stages: dict[str, list[tuple[str, str]]]) -> None:
    assert list(stages)[1:] == ["dependencies", "wheel", "mlflow-dependencies", "runtime", "mlflow", "palimpsest"]
    (base,) = values(stages[""], "ARG")
    assert re.fullmatch(r"PYTHON_IMAGE=python:3\.\d+\.\d+-slim-[a-z]+", base)
    minimum = tuple(map(int, re.findall(r"\d+", PROJECT["requires-python"])))
    assert tuple(map(int, re.findall(r"\d+", base)))[:2] >= minimum
    for name, steps in stages.items():
        for source in re.findall(r"(?:--from=|from=)([\w-]+)", " ".join(value for _, value in steps)):
            assert source in stages, f"{name} takes from {source}"


def test_what_is_copied_is_there_and_not_ignored(stages: dict[str, list[tuple[str, str]]]) -> None:
    (copied,) = values(stages["dependencies"], "COPY")
    for source in copied.split()[:-1]:
        assert (ROOT / source).is_file()
        assert not _ignored(source)
    assert values(stages["wheel"], "COPY") == [". ."]
    needed = [
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "deploy/cli.py",
        "deploy/kafka-4.3.1.lock",
        "pipeline/learner.py",
    ]
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    needed += [f"{name.rstrip('*')}/__init__.py" for name in packages["find"]["include"]]
    for path in needed:
        assert not _ignored(path), path
    for path in (
        ".git/config",
        ".env",
        "deploy/.env",
        "deploy/helm/palimpsest/values.yaml",
        "runs/x",
        "tests/conftest.py",
        "deploy/__pycache__/cli.pyc",
    ):
        assert _ignored(path), path


def _ignored(path: str) -> bool:
    """By .dockerignore: the last pattern that the path or a folder above it matches decides."""
    ignored = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!")
        if not pattern or pattern.startswith("#"):
            continue
        folders = [PurePosixPath(path), *PurePosixPath(path).parents][:-1]
        if pattern.startswith("**/"):
            matches = any(folder.match(pattern.removeprefix("**/")) for folder in folders)
        else:
            matches = any(len(folder.parts) == pattern.count("/") + 1 and folder.match(pattern) for folder in folders)
        if matches:
            ignored = not line.startswith("!")
    return ignored


@pytest.mark.parametrize("stage", ["mlflow", "palimpsest"])
def test_nobody_is_root(stages: dict[str, list[tuple[str, str]]], stage: str) -> None:
    (user,) = values(stages[stage], "USER")
    assert user == "10001:10001"
    instructions = [name for name, _ in stages[stage]]
    assert instructions.index("USER") > max(i for i, name in enumerate(instructions) if name in ("RUN", "COPY", "FROM"))
    assert "--uid 10001" in " ".join(values(stages["runtime"], "RUN"))
    assert values(stages["runtime"], "STOPSIGNAL") == ["SIGTERM"]


def test_variables_of_the_image_are_settings(
    stages: dict[str, list[tuple[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in re.findall(r"(PALIMPSEST_\w+)=(\S+)", " ".join(values(stages["runtime"], "ENV"))):
        monkeypatch.setenv(name, value)
    settings = load_settings()
    hosts = (settings.metrics.host, settings.worker.metrics_host, settings.predictor.host)
    assert hosts == ("0.0.0.0", "0.0.0.0", "0.0.0.0")


def test_it_runs_palimpsest_and_asks_whether_it_lives(stages: dict[str, list[tuple[str, str]]]) -> None:
    assert values(stages["palimpsest"], "ENTRYPOINT") == ['["palimpsest"]']
    assert "palimpsest" in PROJECT["scripts"]
    (health,) = values(stages["palimpsest"], "HEALTHCHECK")
    assert health.endswith(f'CMD ["python", "-m", "{healthy.__name__}"]')
    (ports,) = values(stages["palimpsest"], "EXPOSE")
    assert tuple(map(int, ports.split())) == healthy.USUAL_PORTS
    example = re.search(r"docker run --rm \S+ (.+)", DOCKERFILE.read_text(encoding="utf-8"))
    assert example is not None
    with pytest.raises(click.exceptions.Exit):  # --help
        parsed(example[1].split())


def test_versions_are_those_of_the_project(stages: dict[str, list[tuple[str, str]]]) -> None:
    assert f"VERSION={PROJECT['version']}" in values(stages["palimpsest"], "ARG")
    pins = dict(re.findall(r"(?m)^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8")))
    assert f"PSYCOPG2_VERSION={pins['psycopg2-binary']}" in values(stages["mlflow-dependencies"], "ARG")
    (setuptools,) = [value for value in values(stages["wheel"], "ARG") if value.startswith("SETUPTOOLS")]
    built = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    assert built == ["setuptools>=77"]
    assert int(setuptools.partition("=")[2].split(".")[0]) >= 77


def test_no_secret_becomes_a_layer() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    assert text.count("--mount=type=secret,id=pip") == text.count("pip install --disable") + text.count(
        "python install --disable"
    ) - text.count("--no-index")
    assert not re.search(r"(?i)(password|token)=", text)
