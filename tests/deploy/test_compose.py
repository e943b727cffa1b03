"""deploy/compose.yaml: Compose takes it, and what it says of the images, of us and of its own files is true."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from consumers import topics
from deploy.exit_codes import FOR_A_PERSON
from deploy.image.healthy import USUAL_PORTS
from deploy.learning import _USUAL_METRICS_PORT
from deploy.predicting import _USUAL_PORT
from deploy.settings import Settings, load_settings
from deploy.worker_page import _USUAL_PORT as _USUAL_WORKER_PORT
from tests.deploy.command_line_check import option, parsed
from tests.deploy.compose_project import DEPLOY, PASSWORDS, example_variables, parse, project, seconds, services
from tests.system_package import require_module, require_program

OURS = {"learner": "learn", "worker": "restructure", "predictor": "predict", "demo": "produce"}
ONCE = {"topics", "demo"}
PORTS = {"learner": _USUAL_METRICS_PORT, "worker": _USUAL_WORKER_PORT, "predictor": _USUAL_PORT}


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load_settings(DEPLOY / "compose.settings.yaml")


def test_what_the_issue_asks_for_is_there() -> None:
    assert services().keys() == {
        "kafka", "topics", "postgres", "mlflow", "learner", "worker", "predictor", "demo", "prometheus", "grafana",
    }  # fmt: skip
    assert project(example=False)["services"].keys() == services().keys()


def test_compose_refuses_it_without_passwords() -> None:
    said = parse("compose.yaml", variables={"POSTGRES_PASSWORD": "hush"})
    assert said.returncode != 0
    assert "GRAFANA_ADMIN_PASSWORD" in said.stderr
    assert "choose one in .env" in said.stderr
    assert "hush" not in said.stderr


def test_compose_would_say_what_is_not_of_its_specification(tmp_path: Path) -> None:
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8").replace("stop_grace_period", "stop_grace_periods")
    file = tmp_path / "compose.yaml"
    file.write_text(text, encoding="utf-8")
    said = parse(str(file), variables=PASSWORDS)
    assert said.returncode != 0
    assert "stop_grace_periods" in said.stderr


def test_every_variable_is_in_the_example_and_every_one_there_is_used() -> None:
    used = set()
    for name in ("compose.yaml", "compose.gpu.yaml"):
        used |= set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", (DEPLOY / name).read_text(encoding="utf-8")))
    assert used - {"PALIMPSEST_IMAGE", "MLFLOW_IMAGE"} == example_variables().keys() - {"COMPOSE_PROFILES"}
    assert [name for name, value in example_variables().items() if not value] == list(PASSWORDS)
    for name, value in _defaults().items():
        if name != "PREDICTOR_INPUT":  # the example's is the demo's
            assert example_variables()[name] == value


def _defaults() -> dict[str, str]:
    """The defaults in compose.yaml, the same wherever a variable stands."""
    found: dict[str, set[str]] = {}
    for name, default in re.findall(r"\$\{([A-Z_]+):-([^}]*)\}", (DEPLOY / "compose.yaml").read_text(encoding="utf-8")):
        found.setdefault(name, set()).add(default)
    assert all(len(values) == 1 for values in found.values()), found
    return {name: values.pop() for name, values in found.items() if not name.endswith("_IMAGE")}


@pytest.mark.parametrize("name", OURS)
def test_our_command_lines_are_some(name: str) -> None:
    service = services()[name]
    assert service["command"][0] == OURS[name]
    called = parsed(service["command"])
    assert called["stream"] == "digits"
    if name != "demo":
        assert service["entrypoint"] == ["python", "-m", "deploy.image.hold"]


@pytest.mark.parametrize("name", OURS)
def test_what_they_are_given_is_there(name: str, settings: Settings) -> None:
    service = services()[name]
    assert {config["target"] for config in service["configs"]} == {option(service["command"], "settings")}
    assert settings.kafka.bootstrap_servers == "kafka:9092"
    assert settings.registry.tracking_uri == "http://mlflow:5000"
    folders = [volume["target"] for volume in service.get("volumes", [])]
    for where in ("state", "models"):
        if any(argument.startswith(f"--{where}=") for argument in service["command"]):
            assert Path(option(service["command"], where)).parent.as_posix() in folders


def test_variables_set_something(monkeypatch: pytest.MonkeyPatch) -> None:
    for service in services().values():
        for name, value in service.get("environment", {}).items():
            if name.startswith("PALIMPSEST_"):
                monkeypatch.setenv(name, value)
    load_settings()


def test_learner_and_worker_share_a_volume_and_the_predictor_has_its_own() -> None:
    def volumes(name: str) -> list[tuple[str, str]]:
        return [(volume["source"], volume["target"]) for volume in services()[name]["volumes"]]

    assert volumes("learner") == volumes("worker")
    assert not set(volumes("predictor")) & set(volumes("learner"))
    assert option(services()["learner"]["command"], "state") == option(services()["worker"]["command"], "state")


def test_topics_are_those_that_are_read() -> None:
    made = re.search(r"for topic in ([\w -]+); do", services()["topics"]["command"][0])
    assert made is not None
    names = {f"digits.{topic}" for topic in made[1].split()}
    assert names == {topics.samples("digits"), topics.unlabelled("digits"), topics.requests("digits")}
    assert _input_of_predictor(example_variables()) in names
    # Who names a stream of their own and nothing else is not left with the example's topic, which nobody makes then.
    for nothing in ({}, {"PREDICTOR_INPUT": ""}):
        assert _input_of_predictor({"STREAM": "parcels", **nothing}) == topics.requests("parcels")


def _input_of_predictor(variables: dict[str, str]) -> str:
    answer = parse("compose.yaml", variables={**variables, **PASSWORDS})
    return option(yaml.safe_load(answer.stdout)["services"]["predictor"]["command"], "input")


def test_images_are_exact() -> None:
    for name, service in services().items():
        image, _, tag = service["image"].rpartition(":")
        assert image, name
        assert re.search(r"\d+\.\d+", tag), service["image"]
    kafka = next(DEPLOY.glob("kafka-*.lock")).stem.removeprefix("kafka-")
    assert {services()[name]["image"] for name in ("kafka", "topics")} == {f"apache/kafka:{kafka}"}


def test_nothing_listens_to_the_world() -> None:
    for service in services().values():
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", []))
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not service.get("privileged")
    assert project()["networks"]["tables"]["internal"] is True
    assert list(services()["postgres"]["networks"]) == ["tables"]
    for name in OURS:
        assert services()[name]["read_only"] is True
        assert services()[name]["cap_drop"] == ["ALL"]
        (path, options) = services()[name]["tmpfs"][0].split(":")
        assert (path, len(services()[name]["tmpfs"])) == ("/tmp", 1)
        assert "mode=1777" in options.split(","), "they are not root, whose it is"


def test_passwords_come_from_files_that_are_there() -> None:
    """By the names that the images look at: Postgres's with one underscore, Grafana's with two."""
    for name, variable in (("postgres", "POSTGRES_PASSWORD_FILE"), ("grafana", "GF_SECURITY_ADMIN_PASSWORD__FILE")):
        (secret,) = services()[name]["secrets"]
        assert services()[name]["environment"][variable] == f"/run/secrets/{secret['source']}"
        assert project()["secrets"][secret["source"]]["environment"] in PASSWORDS
    assert "$(cat /run/secrets/postgres_password)" in " ".join(services()["mlflow"]["entrypoint"]).replace("$$", "$")
    for service in services().values():
        assert "hush" not in str({name: part for name, part in service.items() if name != "secrets"})


def test_kafka_is_reached_by_what_it_says_of_itself(settings: Settings) -> None:
    kafka = services()["kafka"]
    environment = kafka["environment"]
    told = dict(listener.split("://") for listener in environment["KAFKA_ADVERTISED_LISTENERS"].split(","))
    (port,) = kafka["ports"]
    assert told["PLAINTEXT"] == settings.kafka.bootstrap_servers
    assert told["HOST"] == f"{port['host_ip']}:{port['published']}"
    listens = dict(listener.split("://") for listener in environment["KAFKA_LISTENERS"].split(","))
    assert listens["HOST"] == f"0.0.0.0:{port['target']}"
    assert (
        listens.keys()
        == dict(each.split(":") for each in environment["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(",")).keys()
    )
    (volume,) = kafka["volumes"]
    assert volume["target"] == environment["KAFKA_LOG_DIRS"]


def test_every_service_is_bounded_watched_and_restarted() -> None:
    for name, service in services().items():
        assert service["deploy"]["resources"]["limits"].keys() >= {"cpus", "memory"}, name
        assert service["logging"]["options"]["max-size"], name
        if name in ONCE:
            assert service["restart"] == "no"
            assert service["healthcheck"]["disable"] is True
        else:
            assert service["restart"] == "unless-stopped"
            assert name == "mlflow" or "test" in service["healthcheck"], "MLflow's is its image's"


def test_who_is_waited_for_can_say_that_it_is_there() -> None:
    for name, service in services().items():
        for other, wanted in service.get("depends_on", {}).items():
            condition = wanted["condition"]
            if condition == "service_healthy":
                assert "test" in services()[other]["healthcheck"], f"{name} waits for {other}"
            if condition == "service_completed_successfully":
                assert other in ONCE


def test_health_is_asked_where_they_listen() -> None:
    assert set(PORTS.values()) == set(USUAL_PORTS)
    for name, port in PORTS.items():
        assert services()[name]["healthcheck"]["test"] == ["CMD", "python", "-m", "deploy.image.healthy", str(port)]


def test_a_stop_has_the_time_it_needs(settings: Settings) -> None:
    grace = seconds(services()["learner"]["stop_grace_period"])
    assert grace >= settings.registry.drain_seconds_at_signal + 60


def test_what_no_restart_mends_is_what_the_head_says() -> None:
    """deploy/image/hold.py holds these; all else Compose starts again."""
    assert {4, 5, 8} == FOR_A_PERSON
    page = (DEPLOY.parent / "docs" / "operator" / "exit-codes.md").read_text(encoding="utf-8")
    for code in FOR_A_PERSON:
        (row,) = [line for line in page.splitlines() if line.startswith(f"| {code} |")]
        assert "not restart it" in row


def test_files_that_are_mounted_are_there() -> None:
    for service in services().values():
        for volume in service.get("volumes", []):
            if volume["type"] == "bind":
                assert Path(volume["source"]).is_dir(), volume["source"]
                assert volume["read_only"] is True
    for config in project()["configs"].values():
        assert Path(config["file"]).is_file()
    assert Path(services()["learner"]["build"]["context"]) == DEPLOY.parent
    dockerfile = (DEPLOY.parent / services()["learner"]["build"]["dockerfile"]).read_text(encoding="utf-8")
    for service in services().values():
        if "build" in service:
            assert f"AS {service['build']['target']}\n" in dockerfile


def test_prometheus_is_told_where_they_are() -> None:
    promtool = require_program("promtool", package="prometheus")
    answer = subprocess.run(
        [promtool, "check", "config", str(DEPLOY / "prometheus" / "compose.yml")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    command = services()["prometheus"]["command"]
    (mount,) = [volume for volume in services()["prometheus"]["volumes"] if volume["type"] == "bind"]
    file = option(command, "config.file").replace(mount["target"], mount["source"])
    ours: dict[str, Any] = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    theirs = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    targets = {
        job["job_name"]: job["static_configs"][0]["targets"]
        for job in ours["scrape_configs"]
        if job["job_name"] != "prometheus"
    }
    assert targets == {f"palimpsest-{name}": [f"{name}:{port}"] for name, port in PORTS.items()}
    assert targets.keys() == {job["job_name"] for job in theirs["scrape_configs"]}
    assert ours["rule_files"] == theirs["rule_files"]
    for name in PORTS:
        assert "watch" in services()[name]["networks"]


def test_grafana_is_told_where_prometheus_and_the_dashboards_are() -> None:
    mounts = {
        volume["target"]: Path(volume["source"])
        for volume in services()["grafana"]["volumes"]
        if volume["type"] == "bind"
    }
    provisioning = mounts["/etc/grafana/provisioning"]
    (providers,) = (provisioning / "dashboards").glob("*.yaml")
    for provider in yaml.safe_load(providers.read_text(encoding="utf-8"))["providers"]:
        assert list(mounts[provider["options"]["path"]].glob("*.json"))
    (sources,) = (provisioning / "datasources").glob("*.yaml")
    for source in yaml.safe_load(sources.read_text(encoding="utf-8"))["datasources"]:
        assert source["url"] == "http://prometheus:9090"
    assert set(services()["grafana"]["networks"]) & set(services()["prometheus"]["networks"])


def test_mlflow_takes_its_command_line_and_the_clients_name_for_it(settings: Settings) -> None:
    server = require_module("mlflow.cli", extra="test").server
    name, *arguments = services()["mlflow"]["command"]
    assert name == "server"
    with server.make_context("mlflow server", list(arguments)) as context:
        called = context.params
    assert called["serve_artifacts"] is True
    assert settings.registry.tracking_uri == f"http://mlflow:{called['port']}"
    assert {"mlflow:5000", "localhost:*", "127.0.0.1:*"} <= set(called["allowed_hosts"].split(","))
    assert called["backend_store_uri"] == "postgresql+psycopg2://mlflow@postgres:5432/mlflow"
    database = services()["postgres"]["environment"]
    assert (database["POSTGRES_USER"], database["POSTGRES_DB"]) == ("mlflow", "mlflow")
    assert called["artifacts_destination"].startswith(services()["mlflow"]["volumes"][0]["target"])


def test_the_gpu_is_for_learner_and_worker() -> None:
    with_gpu = project("compose.yaml", "compose.gpu.yaml")["services"]
    for name, service in with_gpu.items():
        devices = service["deploy"]["resources"].get("reservations", {}).get("devices", [])
        assert [device["capabilities"] for device in devices] == ([["gpu"]] if name in ("learner", "worker") else [])
        assert service["deploy"]["resources"]["limits"] == services()[name]["deploy"]["resources"]["limits"]
