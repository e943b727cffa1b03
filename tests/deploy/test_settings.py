from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy.commands.settings import command
from deploy.settings import Settings, load_settings
from pipeline.retention.der_pp import DarkExperienceReplayPlusPlus
from pipeline.user_error import UserError
from tests.deploy.command_line import palimpsest


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("PALIMPSEST_")]:
        monkeypatch.delenv(name)


def written(folder: Path, content: str | bytes) -> Path:
    file = folder / "settings.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def test_without_a_file_all_defaults() -> None:
    assert load_settings() == Settings()


def test_defaults_file_environment_command_line_in_this_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(
        tmp_path,
        "learner: {batch_size: 20, seed: 7, replay: {capacity: 60}}\nkafka: {bootstrap_servers: 'file:1'}\nstream:\n",
    )
    monkeypatch.setenv("PALIMPSEST_LEARNER__BATCH_SIZE", "30")
    monkeypatch.setenv("PALIMPSEST_LEARNER__REPLAY__DRAW_SIZE", "16")
    monkeypatch.setenv("PALIMPSEST_KAFKA__BOOTSTRAP_SERVERS", "environment:2")
    settings = load_settings(file, {"kafka.bootstrap_servers": "line:3", "metrics.port": None})
    assert settings.learner.batch_size == 30
    assert settings.learner.seed == 7
    assert (settings.learner.replay.capacity, settings.learner.replay.draw_size) == (60, 16)
    assert settings.kafka.bootstrap_servers == "line:3"
    assert settings.metrics.port == Settings().metrics.port
    assert load_settings(file).kafka.bootstrap_servers == "environment:2"


def test_what_nobody_has_set_is_known_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that cannot have a default may go without it, but not without what was asked for."""
    file = tmp_path / "settings.yaml"
    file.write_text("consolidation: {gated: true}\n")
    monkeypatch.setenv("PALIMPSEST_CONSOLIDATION__BATCH_SIZE", "32")
    settings = load_settings(file, {"consolidation.epochs": 3, "consolidation.learning_rate": 0.1})
    assert settings.consolidation.model_fields_set == {"gated", "batch_size", "epochs", "learning_rate"}
    assert load_settings(file, {"kafka.bootstrap_servers": "a:1"}).consolidation.gated is True


def test_a_mapping_in_the_environment_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIMPSEST_LEARNER__RETENTION", '{"der_pp": {"alpha": 0.25}}')
    (term,) = load_settings().learner.retention.values()
    assert isinstance(term, DarkExperienceReplayPlusPlus.Config)
    assert term.alpha == 0.25


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("learner: {batch_sizee: 3}", "learner.batch_sizee: no such setting; `palimpsest settings` prints all"),
        ("lerner: {}", "lerner: no such setting"),
        ("learner: {batch_size: zero}", "learner.batch_size: Input should be a valid integer"),
        ("learner: {batch_size: 0, seed: -1}", "(and 1 more)"),
        ("learner: 3", "learner: a section holds settings by name, not a single value"),
        ("learner: {retention: {der_qq: {}}}", "learner.retention: unknown retention term 'der_qq'; there are der, "),
        ("learner: {retention: der_pp}", "learner.retention: retention is a mapping"),
        ("learner: {retention: {der_pp: {alfa: 1}}}", "alfa"),
        ("learner: {network: {backbone: foo}}", "learner.network.backbone: there is no 'foo'; use auto or one of mlp,"),
        (
            "learner: {network: {backbone: mlp, options: {widht: 3}}}",
            "learner.network.options.widht: no such setting; backbone mlp takes hidden",
        ),
        ("learner: [", "line 1 is not YAML as it should be"),
        ("learner:\n\tbatch_size: 3\n", "line 2 is not YAML as it should be"),
        ("learner: {seed: 1}\nlearner: {seed: 2}\n", "'learner' stands there twice, again in line 2"),
        ("learner:\n  seed: 1\n  seed: 1\n", "'seed' stands there twice, again in line 3"),
        ("hello", "must hold sections such as 'learner:' and 'kafka:', not str"),
        ("- learner", "not list"),
        (b"\xff\xfe\x00", "is not UTF-8"),
        ("kafka: {security_protocol: SASL_SSL}", "kafka: security_protocol SASL_SSL needs a sasl_mechanism"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, content: str | bytes, words: str) -> None:
    file = written(tmp_path, content)
    with pytest.raises(UserError) as raised:
        load_settings(file)
    assert words in str(raised.value)
    assert str(file) in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nofile\.yaml: No such file"):
        load_settings(tmp_path / "nofile.yaml")
    with pytest.raises(UserError, match="Is a directory"):
        load_settings(tmp_path)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("PALIMPSEST_LEARNER__BATCH_SIZE", "x", "PALIMPSEST_LEARNER__BATCH_SIZE: learner.batch_size: Input should be"),
        ("PALIMPSEST_LEARNER__BATCHSIZE", "3", "PALIMPSEST_LEARNER__BATCHSIZE: learner.batchsize: no such setting"),
        ("PALIMPSEST_LERNER__BATCH_SIZE", "3", "PALIMPSEST_LERNER__BATCH_SIZE: there is no section 'lerner'"),
        ("PALIMPSEST_LEARNER__RETENTION", "der_pp", "PALIMPSEST_LEARNER__RETENTION is not JSON"),
        ("PALIMPSEST_LEARNER", "x", "PALIMPSEST_LEARNER is not JSON"),
        (
            "PALIMPSEST_KAFKA_BOOTSTRAP_SERVERS",
            "a:1",
            "PALIMPSEST_KAFKA_BOOTSTRAP_SERVERS would set nothing: sections end with two underscores; did you mean "
            "PALIMPSEST_KAFKA__BOOTSTRAP_SERVERS?",
        ),
        ("PALIMPSEST_LEARNER_REPLAY_CAPACITY", "9", "PALIMPSEST_LEARNER_REPLAY_CAPACITY would set nothing"),
    ],
)
def test_a_wrong_variable_is_named(variable: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError) as raised:
        load_settings()
    assert str(raised.value).startswith(words)
    assert len(str(raised.value).splitlines()) == 1


def test_other_variables_of_ours_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PALIMPSEST_BROKER_DIR", "PALIMPSEST_CACHE", "PALIMPSEST_DATA"):
        monkeypatch.setenv(name, "x")
    # What Kubernetes sets for services named "palimpsest" and "palimpsest-metrics".
    for service in ("PALIMPSEST", "PALIMPSEST_METRICS"):
        monkeypatch.setenv(f"{service}_PORT", "tcp://10.0.0.1:9095")
        monkeypatch.setenv(f"{service}_PORT_9095_TCP_ADDR", "10.0.0.1")
        monkeypatch.setenv(f"{service}_SERVICE_HOST", "10.0.0.1")
    assert load_settings() == Settings()


def test_the_printed_settings_are_a_file_that_says_the_same(tmp_path: Path) -> None:
    file = written(tmp_path, "learner: {seed: 3, retention: {er: {}}}\nkafka: {bootstrap_servers: 'a:1'}\n")
    printed = CliRunner().invoke(command, ["--settings", str(file)], catch_exceptions=False)
    assert printed.exit_code == 0
    again = tmp_path / "again.yaml"
    again.write_text(printed.stdout)
    assert load_settings(again) == load_settings(file) != Settings()
    lines = printed.stdout.splitlines()
    (marked,) = (line for line in lines if line.strip().startswith("# trainable records in one update"))
    assert marked.endswith("[fixed]")
    (unmarked,) = (line for line in lines if line.strip().startswith("# newest snapshots kept"))
    assert "[fixed]" not in unmarked


SECRET = "hunter2-and-more"
SECURE = f"""
kafka:
  bootstrap_servers: broker:9093
  security_protocol: SASL_SSL
  sasl_mechanism: SCRAM-SHA-512
  sasl_plain_username: learner
  sasl_plain_password: {SECRET}
"""


def test_security_settings_are_taken_and_their_secrets_never_shown(tmp_path: Path) -> None:
    file = written(tmp_path, SECURE)
    settings = load_settings(file)
    assert settings.kafka.secret("sasl_plain_password") == SECRET
    printed = CliRunner().invoke(command, ["--settings", str(file)], catch_exceptions=False)
    assert "sasl_plain_username: learner" in printed.stdout
    for shown in (printed.output, repr(settings), str(settings), repr(settings.kafka), settings.model_dump_json()):
        assert SECRET not in shown


@pytest.mark.parametrize(
    "content",
    [
        SECURE + "  sasl_plain_passwort: x\n",
        SECURE + f"  ssl_password: [{SECRET}]\n",
        SECURE.replace("SASL_SSL", "SSL"),
        SECURE + "  ssl_check_hostname: maybe\n",
        SECURE + f"  ssl_password: *{SECRET}\n",
        SECURE + f"  ssl_password: !{SECRET} x\n",
        SECURE + f"  ssl_password: '{SECRET}\n",
        f"kafka: {SECRET}",
        SECRET,
    ],
)
def test_no_complaint_about_a_file_shows_a_secret(tmp_path: Path, content: str) -> None:
    with pytest.raises(UserError) as raised:
        load_settings(written(tmp_path, content))
    assert "hunter2" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert len(str(raised.value).splitlines()) == 1


def test_the_command_ends_with_code_2_and_one_line(tmp_path: Path) -> None:
    done = palimpsest("settings", "--settings", written(tmp_path, "learner: {batch_sizee: 3}"))
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("palimpsest: ")
    assert "batch_sizee" in line
