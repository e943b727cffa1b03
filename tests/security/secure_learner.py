"""`palimpsest` against a broker that lets in only who may: its settings file, and what is asked of it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.command_line import palimpsest
from tests.deploy.streams import SMALL
from tests.secure_kafka import SecureBroker

NO_REGISTRY = "registry: {enabled: false}\n"


def settings_file(folder: Path, secure: SecureBroker, user: str, **kafka: Any) -> Path:
    """`SMALL`, no registry, and the way to the broker as `user` with SCRAM-SHA-512 over TLS."""
    file = folder / f"{user}.yaml"
    section = yaml.safe_dump({"kafka": secure.section("SCRAM-SHA-512", user) | kafka})
    file.write_text(f"{SMALL}{NO_REGISTRY}{section}")
    return file


def learn(stream: str, state: Path, settings: Path) -> subprocess.CompletedProcess[str]:
    return palimpsest("learn", "--stream", stream, "--state", state, "--settings", settings, "--until-idle", 0.2)


def send_digits(stream: str, settings: Path, records: int, *, seed: int = 0) -> None:
    done = palimpsest("produce", "--stream", stream, "--dataset", "digits", "--records", records,
                      "--seed", seed, "--settings", settings)  # fmt: skip
    assert done.returncode == 0, done.stderr
