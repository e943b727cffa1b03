"""deploy/helm: every manifest is what Kubernetes and the operators take, and what it says of us is true."""

from __future__ import annotations

import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from consumers import topics
from consumers.kafka_request_log import check_instance_name, predictor_group
from deploy.settings import Settings, load_settings
from tests.deploy.chart import (
    CHART,
    COMBINATIONS,
    KEDA,
    NEEDED,
    SASL,
    containers,
    helm,
    of_kind,
    pod_specs,
    refusal,
    rendered,
)
from tests.deploy.command_line_check import option, parsed
from tests.system_package import require_go_program

# The oldest that Chart.yaml lets in, and the newest that the package of schemas knows.
KUBERNETES = ("1.27", kubernetes_validate.latest_version())
each_combination = pytest.mark.parametrize("combination", COMBINATIONS)


@each_combination
def test_helm_finds_nothing_to_say(combination: str) -> None:
    answer = helm("lint", "--strict", "--quiet", str(CHART), values=(*NEEDED, *COMBINATIONS[combination]))
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_would_take_every_manifest(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # It reads its schemas, megabytes of them, for each manifest.
    monkeypatch.setattr(kubernetes_validate.utils, "schema_contents", cache(kubernetes_validate.utils.schema_contents))
    every = {json.dumps(manifest) for combination in COMBINATIONS for manifest in rendered(combination)}
    ours = [manifest for manifest in map(json.loads, every) if manifest["apiVersion"].split("/")[0] not in _OPERATORS]
    assert {manifest["kind"] for manifest in ours} == {
        "ConfigMap", "Deployment", "NetworkPolicy", "Pod", "PodDisruptionBudget", "Secret", "Service",
        "ServiceAccount", "StatefulSet",
    }  # fmt: skip
    for manifest in ours:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_a_wrong_manifest_would_be_seen() -> None:
    manifest = json.loads(json.dumps(of_kind("as it comes", "StatefulSet")[0]))
    manifest["spec"]["template"]["spec"]["containers"][0]["livenessProbes"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, KUBERNETES[1], strict=True)


@each_combination
def test_the_operators_would_take_theirs(combination: str) -> None:
    theirs = [manifest for manifest in rendered(combination) if manifest["apiVersion"].split("/")[0] in _OPERATORS]
    answer = _strict_types(theirs)
    assert answer.returncode == 0, answer.stdout


def test_a_wrong_resource_would_be_seen() -> None:
    (scaled,) = of_kind("everything", "ScaledObject")
    (monitor,) = of_kind("everything", "ServiceMonitor")
    for manifest in (
        {**scaled, "spec": {**scaled["spec"], "maxReplicas": 8}},
        {**monitor, "spec": {**monitor["spec"], "endpoints": [{"port": "metrics", "path": 1}]}},
        {**monitor, "kind": "PodMonitoring"},
    ):
        assert _strict_types([manifest]).returncode == 1


_OPERATORS = ("keda.sh", "monitoring.coreos.com")


def _strict_types(manifests: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [require_go_program("strict-types")], input=json.dumps(manifests), capture_output=True, text=True, check=False
    )


@each_combination
def test_every_command_line_is_one(combination: str) -> None:
    for container in containers(combination):
        parsed(
            [
                argument.replace("$(POD_NAME)", "r-palimpsest-predictor-6d4cf56db6-x2x7p")
                for argument in container["args"]
            ]
        )


@each_combination
def test_the_settings_file_is_one(combination: str, tmp_path: Path) -> None:
    settings = _settings(combination, tmp_path)
    assert settings.kafka.bootstrap_servers == "kafka-1:9092,kafka-2:9092"
    hosts = (settings.metrics.host, settings.predictor.host)
    assert hosts == ("0.0.0.0", "0.0.0.0")


def _settings(combination: str, folder: Path) -> Settings:
    (config,) = [manifest for manifest in of_kind(combination, "ConfigMap") if "settings.yaml" in manifest["data"]]
    file = folder / "settings.yaml"
    file.write_text(config["data"]["settings.yaml"], encoding="utf-8")
    return load_settings(file)


def test_large_numbers_stay_numbers(tmp_path: Path) -> None:
    values = (*NEEDED, "settings.shadow.most_open=10000000", "settings.snapshots.max_outbox_bytes=1073741824")
    answer = helm("template", "r", str(CHART), "--show-only", "templates/settings.yaml", values=values)
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_load(answer.stdout)["data"]["settings.yaml"], encoding="utf-8")
    settings = load_settings(file)
    assert (settings.shadow.most_open, settings.snapshots.max_outbox_bytes) == (10_000_000, 2**30)


@each_combination
def test_variables_set_something(combination: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever bears our prefix is a setting: `load_settings` refuses what is none."""
    for container in containers(combination):
        for variable in container["env"]:
            if variable["name"].startswith("PALIMPSEST_"):
                monkeypatch.setenv(variable["name"], variable["value"])
    load_settings()


@each_combination
def test_ports_are_those_that_are_listened_on(combination: str, tmp_path: Path) -> None:
    settings = _settings(combination, tmp_path)
    listened = {
        "learn": settings.metrics.port,
        "restructure": settings.worker.metrics_port,
        "predict": settings.predictor.port,
    }
    for container in containers(combination):
        ports = [port["containerPort"] for port in container.get("ports", [])]
        assert ports == [port for command, port in listened.items() if command == container["args"][0]]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if probe in container:
                action = container[probe]["httpGet"]
                assert action["port"] in [port["name"] for port in container["ports"]]
                assert action["path"] in ("/livez", "/readyz")
    names = {port["name"] for container in containers(combination) for port in container.get("ports", [])}
    for service in of_kind(combination, "Service"):
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names


@each_combination
def test_what_is_mounted_is_there(combination: str) -> None:
    kept = {manifest["metadata"]["name"] for manifest in rendered(combination)}
    theirs = {"sasl", "kafka-tls", "mlflow"}  # the combinations' existing secrets
    for spec in pod_specs(combination):
        volumes = {volume["name"]: volume for volume in spec["volumes"]} | {"state": {}}
        for container in spec["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes.keys()
            for source in container.get("envFrom", []):
                assert source["secretRef"]["name"] in kept | theirs
        for volume in volumes.values():
            for name in (volume.get("configMap", {}).get("name"), volume.get("secret", {}).get("secretName")):
                assert name is None or name in kept | theirs
        assert spec["serviceAccountName"] in kept | {"default"}


@each_combination
def test_no_password_is_in_the_open(combination: str) -> None:
    for manifest in rendered(combination):
        if manifest["kind"] != "Secret":
            assert "hush" not in json.dumps(manifest)


def test_passwords_reach_the_settings_and_mlflow(tmp_path: Path) -> None:
    settings = _settings("everything", tmp_path)
    assert str(settings.kafka.sasl_plain_password_file) == "/run/secrets/kafka/password"
    assert str(settings.kafka.ssl_cafile) == "/run/secrets/kafka-tls/ca.crt"
    secrets = {manifest["metadata"]["name"]: manifest["data"] for manifest in of_kind("everything", "Secret")}
    assert secrets["r-palimpsest-kafka"] == {"password": "aHVzaA=="}
    assert secrets["r-palimpsest-mlflow"].keys() == {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"}
    for container in containers("everything"):
        assert {mount["mountPath"] for mount in container["volumeMounts"]} >= {
            "/run/secrets/kafka",
            "/run/secrets/kafka-tls",
        }
        assert container["envFrom"] == [{"secretRef": {"name": "r-palimpsest-mlflow"}}]


@each_combination
def test_pods_may_do_nothing_that_they_need_not(combination: str) -> None:
    for spec in pod_specs(combination):
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            allowed = container["securityContext"]
            assert allowed["capabilities"] == {"drop": ["ALL"]}
            assert (allowed["allowPrivilegeEscalation"], allowed["readOnlyRootFilesystem"]) == (False, True)
            assert container["resources"].keys() == {"limits", "requests"}
            assert not container["image"].endswith(":latest")
            assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]]


def test_pods_run_as_the_images_user() -> None:
    """Who else they are, they cannot write to what the image made for its own."""
    image = (CHART.parents[1] / "Dockerfile").read_text(encoding="utf-8")
    for spec in pod_specs("as it comes"):
        ids = {spec["securityContext"][name] for name in ("runAsUser", "runAsGroup", "fsGroup")}
        assert ids == {10001}
        assert "USER 10001:10001" in image


@each_combination
def test_the_policy_cuts_off_nobody_who_is_needed(combination: str) -> None:
    for policy in of_kind(combination, "NetworkPolicy"):
        (egress,) = policy["spec"]["egress"]
        assert "to" not in egress
        ways_out = {(port["port"], port["protocol"]) for port in egress["ports"]}
        assert {(53, "UDP"), (53, "TCP")} <= ways_out, "DNS"
        # The brokers' and MLflow's of `NEEDED`, and TLS as most brokers and proxies have it.
        assert {(9092, "TCP"), (9093, "TCP"), (5000, "TCP"), (443, "TCP")} <= ways_out
        scraped, asked = policy["spec"]["ingress"]
        assert "podSelector" not in json.dumps(scraped["from"])
        listened = {
            port["containerPort"] for container in containers("everything") for port in container.get("ports", [])
        }
        assert {port["port"] for port in scraped["ports"]} == listened
        assert {port["port"] for port in asked["ports"]} == {9096}


def test_the_volume_outlives_a_pause_and_a_release() -> None:
    for combination in ("as it comes", "paused, one pod on the volume"):
        (learner,) = of_kind(combination, "StatefulSet")
        retention = learner["spec"]["persistentVolumeClaimRetentionPolicy"]
        assert retention == {"whenDeleted": "Retain", "whenScaled": "Retain"}


@each_combination
def test_learner_and_worker_share_a_folder(combination: str) -> None:
    sets = of_kind(combination, "StatefulSet")
    for learner in sets:
        by_command = {
            container["args"][0]: container for container in learner["spec"]["template"]["spec"]["containers"]
        }
        assert learner["spec"]["replicas"] == (0 if "learner.paused=true" in COMBINATIONS[combination] else 1)
        states = {option(container["args"], "state") for container in by_command.values()}
        mounts = {
            mount["mountPath"]
            for container in by_command.values()
            for mount in container["volumeMounts"]
            if mount["name"] == "state"
        }
        assert [Path(state).parent.as_posix() for state in states] == list(mounts)
        (claim,) = learner["spec"]["volumeClaimTemplates"]
        assert claim["spec"]["accessModes"][0] in ("ReadWriteOnce", "ReadWriteOncePod")
    assert len(sets) == ("learner.enabled=false" not in COMBINATIONS[combination])


def test_probes_let_a_learner_load_and_be_slow(tmp_path: Path) -> None:
    """Before the state is loaded only the start's half hour ends it; afterwards /livez, which waits by itself."""
    (learner,) = [container for container in containers("as it comes") if container["name"] == "learner"]
    start = learner["startupProbe"]
    assert start["httpGet"]["path"] == "/readyz"
    assert start["periodSeconds"] * start["failureThreshold"] >= 1800
    assert learner["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert learner["livenessProbe"]["failureThreshold"] >= 3
    (worker,) = [container for container in containers("as it comes") if container["name"] == "worker"]
    assert worker["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert "readinessProbe" not in worker, "the learner is ready without it"
    settings = _settings("as it comes", tmp_path)
    assert settings.worker.stale_after_seconds >= 3600
    (spec,) = [spec for spec in pod_specs("as it comes") if len(spec["containers"]) == 2]
    assert spec["terminationGracePeriodSeconds"] > settings.registry.drain_seconds_at_signal + 20


def test_keda_counts_what_the_predictors_have_not_answered() -> None:
    for combination, values in COMBINATIONS.items():
        for scaled in of_kind(combination, "ScaledObject"):
            (trigger,) = scaled["spec"]["triggers"]
            assert trigger["type"] == "kafka"
            assert trigger["metadata"].keys() <= _KEDA_KAFKA
            assert trigger["metadata"]["consumerGroup"] == predictor_group("digits", "champion")
            assert trigger["metadata"]["topic"] == topics.requests("digits")
            assert trigger["metadata"]["offsetResetPolicy"] == "earliest"  # predictor.begins is beginning
            assert scaled["spec"]["maxReplicaCount"] == 8
            names = [manifest["metadata"]["name"] for manifest in of_kind(combination, "Deployment")]
            assert scaled["spec"]["scaleTargetRef"]["name"] in names
            target = next(
                manifest
                for manifest in of_kind(combination, "Deployment")
                if manifest["metadata"]["name"] == scaled["spec"]["scaleTargetRef"]["name"]
            )
            assert "replicas" not in target["spec"], "Helm and KEDA would undo each other"
            if "authenticationRef" in trigger:
                made = [manifest["metadata"]["name"] for manifest in of_kind(combination, "TriggerAuthentication")]
                assert trigger["authenticationRef"]["name"] in [*made, "mine"]
        if set(KEDA) <= set(values):
            assert of_kind(combination, "ScaledObject")


# KEDA 2's scaler "Apache Kafka", as its documentation lists them; of the trigger, not of the authentication.
_KEDA_KAFKA = {
    "bootstrapServers", "consumerGroup", "topic", "lagThreshold", "activationLagThreshold", "offsetResetPolicy",
    "allowIdleConsumers", "scaleToZeroOnInvalidOffset", "excludePersistentLag", "limitToPartitionsWithLag", "version",
    "partitionLimitation", "sasl", "tls", "unsafeSsl",
}  # fmt: skip


@pytest.mark.parametrize(
    ("combination", "parameters"),
    [
        ("everything", {"username", "password", "ca", "cert", "key"}),
        ("existing secrets", {"username", "password"}),
        ("KEDA over mutual TLS", {"ca", "cert", "key"}),
    ],
)
def test_keda_gets_in_by_the_same_secrets(combination: str, parameters: set[str]) -> None:
    (authentication,) = of_kind(combination, "TriggerAuthentication")
    (scaled,) = of_kind(combination, "ScaledObject")
    trigger = scaled["spec"]["triggers"][0]["metadata"]
    assert (trigger["tls"], trigger.get("sasl")) == ("enable", "scram_sha512" if "password" in parameters else None)
    references = {reference["parameter"]: reference for reference in authentication["spec"]["secretTargetRef"]}
    assert references.keys() == parameters
    if "password" in parameters:
        assert references["password"]["name"] == ("sasl" if combination == "existing secrets" else "r-palimpsest-kafka")


@each_combination
def test_predictors_have_names_that_kafka_takes(combination: str) -> None:
    for deployment in of_kind(combination, "Deployment"):
        check_instance_name(f"{deployment['metadata']['name']}-6d4cf56db6-x2x7p")
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        assert option(container["args"], "instance") == "$(POD_NAME)"
        assert "POD_NAME" in [variable["name"] for variable in container["env"]]


@each_combination
def test_each_service_and_policy_finds_pods(combination: str) -> None:
    pods = [
        manifest["spec"]["template"]["metadata"]["labels"]
        for manifest in rendered(combination)
        if manifest["kind"] in ("Deployment", "StatefulSet")
    ]
    selectors = [manifest["spec"]["selector"] for manifest in of_kind(combination, "Service")]
    selectors += [
        manifest["spec"]["selector"]["matchLabels"] for manifest in of_kind(combination, "PodDisruptionBudget")
    ]
    for selector in selectors:
        assert len([labels for labels in pods if selector.items() <= labels.items()]) == 1
    services = [manifest["metadata"]["labels"] for manifest in of_kind(combination, "Service")]
    for monitor in of_kind(combination, "ServiceMonitor"):
        assert all(monitor["spec"]["selector"]["matchLabels"].items() <= labels.items() for labels in services)
        ports = {port["name"] for service in of_kind(combination, "Service") for port in service["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} == ports


def test_gpus_are_asked_for() -> None:
    for container in containers("on GPUs"):
        if container["name"] != "check":
            assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    for container in containers("as it comes"):
        assert "nvidia.com/gpu" not in container["resources"]["limits"]


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (("stream=",), "stream"),
        (("stream=no spaces",), "stream"),
        (("settings.kafka.bootstrap_servers=",), "settings.kafka.bootstrap_servers is needed"),
        (("settings.registry.tracking_uri=",), "settings.registry.tracking_uri is needed"),
        (("settings.registry.tracking_uri=", "settings.registry.enabled=false"), "predictors need"),
        (("settings.kafka.sasl_plain_password=hush",), "would stand in a ConfigMap"),
        (("kafka.password=hush",), "security_protocol is not SASL_SSL"),
        (("learner.terminationGracePeriodSeconds=25",), "must be more than 20 above"),
        (("settings.registry.drain_seconds_at_signal=80",), "must be more than 20 above"),
        ((*KEDA, *SASL), "kafka.password or kafka.existingSecret is needed"),
        ((*KEDA, "settings.kafka.sasl_mechanism=GSSAPI"), "predictor.keda.authentication"),
        ((*KEDA, "predictor.keda.minReplicas=5", "predictor.keda.partitions=4"), "minReplicas is 5"),
        (("learner.replicas=2",), "replicas"),
        (("learner.extraEnv[0].name=A", "learner.extraEnv[0].value=32"), "extraEnv"),
        (("image.tag=latest",), "tag"),
        (("learner.volume.accessMode=ReadWriteMany",), "accessMode"),
    ],
)
def test_what_would_not_run_is_refused_with_the_way_out(values: tuple[str, ...], why: str) -> None:
    said = refusal(*values)
    assert why in said
    assert "hush" not in said


def test_the_notes_name_what_is_there(tmp_path: Path) -> None:
    """Helm shows them where it installs; here a manifest in a copy of the chart holds them."""
    chart = shutil.copytree(CHART, tmp_path / "palimpsest")
    (chart / "templates" / "NOTES.txt").rename(chart / "NOTES.txt")
    manifest = '{"apiVersion": "v1", "kind": "Notes", "text": {{ tpl (.Files.Get "NOTES.txt") . | toJson }}}'
    (chart / "templates" / "notes.yaml").write_text(manifest, encoding="utf-8")
    shown = ("--show-only", "templates/notes.yaml")
    answer = helm("template", "r", str(chart), "--namespace", "ml", *shown, values=NEEDED)
    assert answer.returncode == 0, answer.stderr
    notes = yaml.safe_load(answer.stdout)["text"]
    names = [f"{manifest['kind'].lower()}/{manifest['metadata']['name']}" for manifest in rendered("as it comes")]
    for word in notes.split():
        if word.startswith(("statefulset/", "service/")):
            assert word in names
    assert "statefulset/r-palimpsest-learner" in notes
    (command,) = [line.split() for line in notes.splitlines() if line.strip().startswith("palimpsest promote")]
    assert parsed(command[1:])["tracking_uri"] == "http://mlflow.mlflow:5000"


def test_every_value_has_its_schema_and_its_default() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert _documented(values) == _described(schema, schema["definitions"])


_OPEN = {"settings", "podSecurityContext", "containerSecurityContext", "global"}


def _documented(values: dict[str, Any], path: str = "") -> set[str]:
    """Paths of all values, down to what a schema describes."""
    names: set[str] = set()
    for name, value in values.items():
        if name in _OPEN or name in ("resources", "labels", "annotations"):
            continue
        names |= _documented(value, f"{path}{name}.") if isinstance(value, dict) and value else {path + name}
    return names


def _described(schema: dict[str, Any], definitions: dict[str, Any], path: str = "") -> set[str]:
    names: set[str] = set()
    for name, entry in schema["properties"].items():
        if name in _OPEN or name in ("resources", "labels", "annotations"):
            continue
        entry = definitions[entry["$ref"].rsplit("/", 1)[1]] if "$ref" in entry else entry
        names |= _described(entry, definitions, f"{path}{name}.") if entry.get("properties") else {path + name}
    return names
