"""Debian's Prometheus, running: it scrapes what a test runs, and answers queries over its HTTP API."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deploy.local_port import free_port
from tests.system_package import require_program

DEADLINE_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One element of an instant vector."""

    labels: Mapping[str, str]  # with __name__, where there is one
    value: float  # NaN is a value


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusServer:
    """Its HTTP API."""

    url: str
    log_file: Path

    def query(self, expression: str) -> list[Series]:
        """The vector now; a scalar is one series without labels. `ValueError` where it cannot be evaluated."""
        result = self._ask("query", query=expression)
        if result["resultType"] == "scalar":
            return [Series(labels={}, value=float(result["result"][1]))]
        assert result["resultType"] == "vector", result["resultType"]
        return [Series(labels=entry["metric"], value=float(entry["value"][1])) for entry in result["result"]]

    def rules(self) -> list[dict[str, Any]]:
        """All that it has loaded, as its API shows them."""
        groups: list[dict[str, Any]] = self._ask("rules")["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def targets(self) -> list[dict[str, Any]]:
        """The active ones."""
        found: list[dict[str, Any]] = self._ask("targets")["activeTargets"]
        return found

    def wait_for(self, expression: str, is_there: Callable[[list[Series]], bool] = bool) -> list[Series]:
        """Until the query's result is as wanted: by default, until there is any."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not is_there(found := self.query(expression)):
            assert time.monotonic() < deadline, f"{expression}: {found}\n{self.log_file.read_text()}"
            time.sleep(0.1)
        return found

    def _ask(self, what: str, **parameters: str) -> Any:
        try:
            with urllib.request.urlopen(
                f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}", timeout=30
            ) as answer:
                return json.loads(answer.read())["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise ValueError(f"{parameters}: {error.read().decode()}") from None


@contextmanager
def running_prometheus(folder: Path, config: Mapping[str, Any]) -> Iterator[PrometheusServer]:
    """With this configuration; its data and its log go into `folder`. Without the program the test is skipped."""
    program = require_program("prometheus", package="prometheus")
    folder.mkdir(parents=True, exist_ok=True)
    file, log_file = folder / "prometheus.yml", folder / "prometheus.log"
    file.write_text(yaml.safe_dump(dict(config)))
    port = free_port()
    command = [program, f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}"]
    with log_file.open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            server = PrometheusServer(url=f"http://127.0.0.1:{port}", log_file=log_file)
            _wait_until_ready(server, process)
            yield server
        finally:
            process.terminate()


def _wait_until_ready(server: PrometheusServer, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        assert process.poll() is None, server.log_file.read_text()
        assert time.monotonic() < deadline, server.log_file.read_text()
        try:
            with urllib.request.urlopen(f"{server.url}/-/ready", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.05)
