"""The jars of Apache Kafka: fetched once from a Maven repository, held to a committed lock of SHA-256 sums.

The lock (`kafka-4.3.1.lock` beside this file) names every jar of the class path; nothing else is fetched and nothing
else is loaded. After the first fetch no network is needed. Maintainers write a new lock with
`python -m deploy.kafka_jars write-lock` and review its diff.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pipeline.user_error import UserError

KAFKA_VERSION = "4.3.1"
LOCK_FILE = Path(__file__).with_name(f"kafka-{KAFKA_VERSION}.lock")

# kafka_2.13 speaks slf4j and brings log4j-core but no bridge between the two; without it the broker logs nothing.
_KAFKA = ("org.apache.kafka", "kafka_2.13", KAFKA_VERSION)
_LOG_BRIDGE = ("org.apache.logging.log4j", "log4j-slf4j-impl")

_FETCH_ATTEMPTS = 3  # a connection that breaks off in the middle of a jar
_READ_TIMEOUT_SECONDS = 60  # a repository that accepts the connection and then says nothing
_PARALLEL_FETCHES = 8
_OF_A_FETCHED_JAR = (
    "the repository or a proxy gave another file than the lock's; look at the repositories in jgo's settings, try again"
)


@dataclass(frozen=True, kw_only=True)
class LockedJar:
    """One line of the lock: `group:artifact:version sha256`."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        return f"{self.artifact}-{self.version}.jar"

    @property
    def coordinate(self) -> str:
        return f"{self.group}:{self.artifact}:{self.version}"


def read_lock(lock_file: Path = LOCK_FILE) -> tuple[LockedJar, ...]:
    """The jars of the class path, in its order. Raises `UserError` for a line that is not one of a lock."""
    jars = []
    for number, line in enumerate(lock_file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        coordinate, _, sha256 = line.partition(" ")
        parts = coordinate.split(":")
        if len(parts) != 3 or not all(parts) or len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
            raise UserError(
                f"{lock_file}, line {number}: {line!r} is not `group:artifact:version sha256`: "
                "install palimpsest again, or restore the file from its repository"
            )
        jars.append(LockedJar(group=parts[0], artifact=parts[1], version=parts[2], sha256=sha256))
    return tuple(jars)


def jar_folder() -> Path:
    """Where the jars are kept: `$PALIMPSEST_CACHE/kafka-4.3.1`, or the same under `~/.cache/palimpsest`."""
    cache = os.environ.get("PALIMPSEST_CACHE")
    base = Path(cache).expanduser() if cache else Path.home() / ".cache" / "palimpsest"
    return base.absolute() / f"kafka-{KAFKA_VERSION}"


def check_jars(jars: Iterable[LockedJar], folder: Path) -> list[Path]:
    """The paths of `jars` in `folder`, each one's sum compared with the lock.

    Raises `UserError` for the first jar that is missing or is not the one of the lock.
    """
    paths = []
    for jar in jars:
        path = folder / jar.file_name
        if not path.is_file():
            raise UserError(f"{path} is missing: `palimpsest broker install` fetches it")
        _compare_with_lock(jar, path, way_out=f"delete {path}, then `palimpsest broker install` fetches it again")
        paths.append(path)
    return paths


def install_jars(
    folder: Path | None = None, lock_file: Path = LOCK_FILE, tell: Callable[[str], object] | None = None
) -> list[Path]:
    """Fetch what `folder` lacks and check everything; returns the class path.

    1. Compare the jars that are there with the lock; a wrong one is refused, never replaced in silence.
    2. Fetch the missing ones into a folder of this process, so that a broken fetch leaves nothing half written.
    3. Compare each with the lock, and only then move it into place (atomic, so installs may run side by side).

    Raises `UserError` for a wrong sum, a folder that cannot be written, or a repository out of reach.
    """
    folder = folder or jar_folder()
    if os.pathsep in str(folder):
        raise UserError(f"the jar folder {folder} has {os.pathsep!r} in its name, which ends a class path entry: "
                        "set PALIMPSEST_CACHE to another folder")  # fmt: skip
    jars = read_lock(lock_file)
    missing = [jar for jar in jars if not (folder / jar.file_name).is_file()]  # (1)
    check_jars((jar for jar in jars if jar not in missing), folder)
    if missing:
        if tell is not None:
            tell(f"fetching {len(missing)} of the {len(jars)} jars of Apache Kafka {KAFKA_VERSION} into {folder}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as staging:
                with ThreadPoolExecutor(_PARALLEL_FETCHES) as pool:
                    fetched = list(pool.map(lambda jar: _fetch(jar, Path(staging)), missing))  # (2)
                for jar, path in zip(missing, fetched, strict=True):
                    _compare_with_lock(jar, path, _OF_A_FETCHED_JAR)  # (3)
                    path.replace(folder / jar.file_name)
        except OSError as error:
            raise UserError(
                f"the jar folder {folder} cannot be written ({error.strerror or error}): "
                "free it, or set PALIMPSEST_CACHE to a folder that can"
            ) from error
    return [folder / jar.file_name for jar in jars]


def _compare_with_lock(jar: LockedJar, path: Path, way_out: str) -> None:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != jar.sha256:
        raise UserError(
            f"{jar.file_name} is not the jar of the lock: expected SHA-256 {jar.sha256}, got {sha256}: {way_out}"
        )


def _fetch(jar: LockedJar, staging: Path) -> Path:
    import requests
    from jgo.config import GlobalSettings
    from jgo.constants import MAVEN_CENTRAL_URL
    from jgo.maven import MavenContext

    # The user's own jgo settings may name a mirror, also under the name `central`.
    repositories = {"central": MAVEN_CENTRAL_URL, **GlobalSettings.load().repositories}
    failure: Exception | None = None
    for attempt in range(_FETCH_ATTEMPTS):
        # A fresh folder each time: jgo writes the jar in place and takes what lies there for whole.
        context = MavenContext(
            repo_cache=staging / f"{jar.file_name}-{attempt}", remote_repos=repositories, timeout=_READ_TIMEOUT_SECONDS
        )
        try:
            return context.project(jar.group, jar.artifact).at_version(jar.version).artifact().resolve()
        except (requests.RequestException, RuntimeError) as error:  # jgo says RuntimeError for "not found"
            failure = error
    raise UserError(
        f"{jar.coordinate} could not be fetched ({type(failure).__name__}: {failure}): the first `palimpsest broker "
        f"install` needs a Maven repository; look at the network, or copy {jar_folder()} from a machine that has it"
    ) from failure


def write_lock(lock_file: Path = LOCK_FILE) -> None:
    """Resolve Kafka's dependencies anew and write the lock; for maintainers, who review the difference."""
    import jgo
    from jgo.maven import MavenContext

    artifacts = jgo.resolve(":".join(_KAFKA))
    log4j = next(artifact for artifact in artifacts if artifact.artifactId == "log4j-core")
    # On its own and without dependencies: resolved together with Kafka, log4j's BOM would manage Kafka's versions.
    artifacts.append(MavenContext().project(*_LOG_BRIDGE).at_version(log4j.version).artifact())
    lines = [
        f"# Class path of Apache Kafka {KAFKA_VERSION}: group:artifact:version sha256",
        "# Written by `python -m deploy.kafka_jars write-lock`; checked at every install and every start.",
    ]
    for artifact in artifacts:
        sha256 = hashlib.sha256(artifact.resolve().read_bytes()).hexdigest()
        lines.append(f"{artifact.groupId}:{artifact.artifactId}:{artifact.version} {sha256}")
    lock_file.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["write-lock"]:
        sys.exit("usage: python -m deploy.kafka_jars write-lock")
    write_lock()
