"""The image's wheel, built as deploy/Dockerfile builds it of what .dockerignore lets through, and installed apart."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.deploy.test_image import DOCKERFILE, PROJECT, ROOT, _ignored

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `COPY . .` copies."""
    folder = tmp_path_factory.mktemp("context")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for path in filter(None, listed.split("\0")):
        if not _ignored(path) and (ROOT / path).exists():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, folder / path)
    return folder


@pytest.fixture(scope="module")
def wheel(context: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(context, tmp_path_factory.mktemp("wheels"))


def _build(context: Path, into: Path) -> Path:
    epoch = re.search(r"SOURCE_DATE_EPOCH=(\d+)", DOCKERFILE.read_text(encoding="utf-8"))
    assert epoch is not None
    command = [sys.executable, "-m", "pip", "wheel", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*command, "--no-index", "--wheel-dir", str(into), "."],
        cwd=context, check=True, capture_output=True, env={**os.environ, "SOURCE_DATE_EPOCH": epoch[1]},
    )  # fmt: skip
    (built,) = into.glob("*.whl")
    return built


def test_it_holds_what_is_run_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {"deploy/cli.py", "deploy/kafka-4.3.1.lock", "deploy/image/hold.py", "pipeline/learner.py"} <= set(names)
    assert {"deploy/grafana/dashboards/forgetting.json"} <= set(names)
    for name in names:
        assert not name.startswith(("tests/", "runs/", "docs/")), name
        assert not name.startswith("deploy/compose"), name
        assert "helm/" not in name, name


def test_the_same_source_gives_the_same_wheel(context: Path, wheel: Path, tmp_path: Path) -> None:
    shutil.rmtree(context / "build", ignore_errors=True)
    again = _build(context, tmp_path)
    assert hashlib.sha256(again.read_bytes()).hexdigest() == hashlib.sha256(wheel.read_bytes()).hexdigest()


def test_it_runs_where_it_is_installed(wheel: Path, tmp_path: Path) -> None:
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--disable-pip-version-check"]
    subprocess.run([*install, "--no-index", "--no-deps", str(wheel)], check=True, capture_output=True)

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        # What it depends on is this environment's; its own code is not, since no .pth is obeyed here.
        variables = {"PATH": f"{folder / 'bin'}:/usr/bin:/bin", "PYTHONPATH": sysconfig.get_path("purelib")}
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=variables, check=False)

    version = run("palimpsest", "--version")
    assert version.stdout == f"palimpsest, version {PROJECT['version']}\n", version.stderr
    health = run("python", "-m", "deploy.image.healthy", "1")
    assert (health.returncode, health.stderr) == (1, "nothing listens on 1\n")
    where = run(
        "python", "-c", "from deploy.kafka_jars import LOCK_FILE, read_lock; print(LOCK_FILE, len(read_lock()))"
    )
    file, jars = where.stdout.split()
    assert Path(file).is_relative_to(folder)
    assert int(jars) > 20
    assert run("palimpsest", "settings").returncode == 0
