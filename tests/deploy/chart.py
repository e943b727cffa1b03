"""The Helm chart rendered by Helm itself: values in, manifests out."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.system_package import require_go_program

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "palimpsest"
# What every release needs.
NEEDED = (
    "stream=digits",
    "settings.kafka.bootstrap_servers=kafka-1:9092\\,kafka-2:9092",
    "settings.registry.tracking_uri=http://mlflow.mlflow:5000",
)
SASL = (
    "settings.kafka.security_protocol=SASL_SSL",
    "settings.kafka.sasl_mechanism=SCRAM-SHA-512",
    "settings.kafka.sasl_plain_username=learner",
)
KEDA = ("predictor.keda.enabled=true", "predictor.keda.partitions=8")
OPERATOR = (
    "monitoring.serviceMonitor.enabled=true",
    "monitoring.prometheusRule.enabled=true",
    "monitoring.dashboards.enabled=true",
)
# Every branch of every template, by what somebody would want.
COMBINATIONS: Mapping[str, Sequence[str]] = {
    "as it comes": (),
    "everything": (
        *SASL,
        *KEDA,
        *OPERATOR,
        "kafka.password=hush",
        "kafka.tls.existingSecret=kafka-tls",
        "kafka.tls.certificate=tls.crt",
        "kafka.tls.key=tls.key",
        "mlflow.username=palimpsest",
        "mlflow.password=hush",
        "challenger.enabled=true",
        "learner.extraEnv[0].name=PALIMPSEST_LEARNER__DEVICE",
        "learner.extraEnv[0].value=cpu",
        "learner.nodeSelector.disk=ssd",
        "learner.priorityClassName=high",
        "imagePullSecrets[0].name=pull",
        "predictor.extraArgs[0]=--until-idle=3600",
        "predictor.tolerations[0].operator=Exists",
    ),
    "existing secrets": (*SASL, *KEDA, "kafka.existingSecret=sasl", "mlflow.existingSecret=mlflow"),
    "a token, an image's digest": ("mlflow.token=hush", f"image.digest=sha256:{'0' * 64}"),
    "KEDA without a password": (*KEDA,),
    "KEDA over mutual TLS": (
        *KEDA,
        "settings.kafka.security_protocol=SSL",
        "kafka.tls.existingSecret=kafka-tls",
        "kafka.tls.certificate=tls.crt",
        "kafka.tls.key=tls.key",
    ),
    "KEDA with a way in of one's own": (
        *KEDA,
        "settings.kafka.security_protocol=SASL_SSL",
        "settings.kafka.sasl_mechanism=OAUTHBEARER",
        "settings.kafka.sasl_oauth_token_file=/var/lib/palimpsest/token",
        "predictor.keda.authentication=mine",
    ),
    "on GPUs": (
        "learner.gpu.count=1",
        "worker.gpu.count=1",
        "predictor.gpu.count=1",
        "learner.runtimeClassName=nvidia",
        "predictor.runtimeClassName=nvidia",
    ),
    "a learner alone": (
        "worker.enabled=false",
        "predictor.enabled=false",
        "settings.registry.tracking_uri=",
        "settings.registry.enabled=false",
    ),
    "predictors alone": ("learner.enabled=false", "predictor.replicas=3", "predictor.input=asked"),
    "paused, one pod on the volume": ("learner.paused=true", "learner.volume.accessMode=ReadWriteOncePod"),
    "nothing around it": (
        "networkPolicy.enabled=false",
        "serviceAccount.create=false",
        "predictor.podDisruptionBudget.enabled=false",
    ),
    "another's names": (
        "fullnameOverride=a-name-that-is-longer-than-what-kubernetes-lets-pass-for-a-label",
        "nameOverride=other",
    ),
}


def helm(*arguments: str, values: Iterable[str] = ()) -> subprocess.CompletedProcess[str]:
    """Helm with the chart as its last argument; what it said."""
    sets = [part for value in values for part in ("--set", value)]
    command = [require_go_program("helm"), *arguments, *sets]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@cache
def rendered(combination: str) -> tuple[dict[str, Any], ...]:
    """The manifests of a combination, those of `helm test` too."""
    answer = helm("template", "r", str(CHART), "--namespace", "ml", values=(*NEEDED, *COMBINATIONS[combination]))
    assert answer.returncode == 0, answer.stderr
    return tuple(manifest for manifest in yaml.safe_load_all(answer.stdout) if manifest)


def refusal(*values: str) -> str:
    """Why Helm does not render these values besides the needed ones."""
    answer = helm("template", "r", str(CHART), values=(*NEEDED, *values))
    assert answer.returncode != 0, answer.stdout
    return answer.stderr


def of_kind(combination: str, kind: str) -> list[dict[str, Any]]:
    return [manifest for manifest in rendered(combination) if manifest["kind"] == kind]


def pod_specs(combination: str) -> list[dict[str, Any]]:
    """Of every pod that is there or comes of a Deployment or a StatefulSet."""
    return [
        manifest["spec"] if manifest["kind"] == "Pod" else manifest["spec"]["template"]["spec"]
        for manifest in rendered(combination)
        if manifest["kind"] in ("Pod", "Deployment", "StatefulSet")
    ]


def containers(combination: str) -> list[dict[str, Any]]:
    return [container for spec in pod_specs(combination) for container in spec["containers"]]
