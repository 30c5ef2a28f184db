"""The Helm chart and the manifests made from it: restricted pods, members with names, no more than partitions."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lstmstream.config import Config, load_config
from tests.programs import find_program
from tests.test_deploy import last_stage

ROOT = Path(__file__).parent.parent
CHART = ROOT / "deploy" / "helm" / "lstmstream"
MANIFESTS = ROOT / "deploy" / "kubernetes"
GENERATED = ("lstmstream.yaml", "podmonitor.yaml", "scaledobject.yaml")
EVERYTHING = (
    "keda.enabled=true",
    "podMonitor.enabled=true",
    "prometheusRule.enabled=true",
    "prometheusRule.runbookUrl=https://runbooks.example/lstmstream",
    "secret.name=kafka",
    "workers=2",
    "image.digest=sha256:" + "0" * 64,
)

Manifest = dict[str, Any]


def find_helm() -> str:
    return find_program("helm", install="with Go: go install helm.sh/helm/v3/cmd/helm@latest")


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([find_helm(), *arguments], capture_output=True, text=True, check=False)


def template(*settings: str) -> subprocess.CompletedProcess[str]:
    options = [part for setting in settings for part in ("--set", setting)]
    return helm("template", "fraud", str(CHART), "--namespace", "scoring", "--kube-version", "1.31.0", *options)


def by_kind(documents: Iterable[Manifest | None]) -> dict[str, Manifest]:
    return {document["kind"]: document for document in documents if document is not None}


@pytest.fixture(scope="module")
def plain() -> dict[str, Manifest]:
    """The manifests as they are in the repository."""
    found: dict[str, Manifest] = {}
    for name in ("namespace.yaml", *GENERATED):
        found |= by_kind(yaml.safe_load_all((MANIFESTS / name).read_text(encoding="utf-8")))
    return found


@pytest.fixture(scope="module")
def full() -> dict[str, Manifest]:
    """What Helm makes with everything switched on."""
    made = template(*EVERYTHING)
    assert made.returncode == 0, made.stderr
    return by_kind(yaml.safe_load_all(made.stdout))


def pod_of(manifests: dict[str, Manifest]) -> Manifest:
    pod: Manifest = manifests["StatefulSet"]["spec"]["template"]["spec"]
    return pod


def container_of(manifests: dict[str, Manifest]) -> Manifest:
    (container,) = pod_of(manifests)["containers"]
    found: Manifest = container
    return found


def config_of(manifests: dict[str, Manifest], folder: Path) -> Config:
    (folder / "stream.yaml").write_text(manifests["ConfigMap"]["data"]["stream.yaml"])
    return load_config(folder / "stream.yaml", {})


# -- the manifests -----------------------------------------------------------------------------------------------------


def test_pods_are_restricted(plain: dict[str, Manifest]) -> None:
    labels = plain["Namespace"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    pod, container = pod_of(plain), container_of(plain)
    user, group = map(int, dict(last_stage())["USER"].split(":"))
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": group,
        "fsGroup": group,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert plain["ServiceAccount"]["automountServiceAccountToken"] is False
    assert {"cpu", "memory"} == set(container["resources"]["limits"]) == set(container["resources"]["requests"])
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(pod)
    assert all("hostPath" not in volume for volume in pod["volumes"])


def test_a_pod_is_a_static_member_and_has_time_to_hand_over(plain: dict[str, Manifest], tmp_path: Path) -> None:
    config = config_of(plain, tmp_path)
    environment = {entry["name"]: entry for entry in container_of(plain)["env"]}
    name = environment["LSTMSTREAM_KAFKA__PROPERTIES__GROUP_INSTANCE_ID"]
    assert name["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    values = dict.fromkeys(environment, "lstmstream-0")
    assert load_config(tmp_path / "stream.yaml", values).kafka.properties["group.instance.id"] == "lstmstream-0"
    assert pod_of(plain)["terminationGracePeriodSeconds"] > config.shutdown_timeout + 5
    stateful_set = plain["StatefulSet"]["spec"]
    assert stateful_set["podManagementPolicy"] == "Parallel"
    assert stateful_set["serviceName"] == plain["Service"]["metadata"]["name"]


def test_probes_ask_for_the_right_things(plain: dict[str, Manifest], tmp_path: Path) -> None:
    container = container_of(plain)
    paths = {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths == {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
    config = config_of(plain, tmp_path)
    assert config.http.host == "0.0.0.0", "probes come from outside of the container"
    (port,) = container["ports"]
    assert port == {"name": "http", "containerPort": config.http.port}
    assert container["args"] == ["run", "/etc/lstmstream/stream.yaml"]
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted == {"/etc/lstmstream/stream.yaml", "/tmp"}


def test_all_selectors_find_the_pods(plain: dict[str, Manifest]) -> None:
    labels = plain["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    selectors = [plain[kind]["spec"]["selector"]["matchLabels"] for kind in ("PodDisruptionBudget", "PodMonitor")]
    selectors += [plain["StatefulSet"]["spec"]["selector"]["matchLabels"], plain["Service"]["spec"]["selector"]]
    selectors += [plain["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]]
    assert all(selector and selector.items() <= labels.items() for selector in selectors)
    (endpoint,) = plain["PodMonitor"]["spec"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("http", "/metrics")


def test_only_what_is_needed_comes_in_and_goes_out(plain: dict[str, Manifest]) -> None:
    policy = plain["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    (ingress,) = policy["ingress"]
    assert ingress["from"], "an empty list would be everybody"
    assert [port["port"] for port in ingress["ports"]] == ["http"]
    assert {port["port"] for rule in policy["egress"] for port in rule["ports"]} == {53, 9092, 9093}


def test_the_autoscaler_goes_by_the_lag_and_never_above_the_partitions(plain: dict[str, Manifest]) -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    scaled = plain["ScaledObject"]["spec"]
    assert 1 <= scaled["minReplicaCount"] <= scaled["maxReplicaCount"] == values["partitions"]
    assert scaled["scaleTargetRef"]["kind"] == "StatefulSet"
    assert scaled["scaleTargetRef"]["name"] == plain["StatefulSet"]["metadata"]["name"]
    (trigger,) = scaled["triggers"]
    assert trigger["type"] == "prometheus"
    monitor = plain["PodMonitor"]["metadata"]
    lag = f'lstmstream_consumer_lag_records{{job="{monitor["namespace"]}/{monitor["name"]}"}}'
    assert lag in trigger["metadata"]["query"]
    assert trigger["metadata"]["ignoreNullValues"] == "false", "an unknown lag is not a lag of 0"


def test_kustomize_lists_files_that_exist() -> None:
    kustomization = yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text(encoding="utf-8"))
    assert kustomization["resources"] == ["namespace.yaml", "lstmstream.yaml"]
    assert all((MANIFESTS / name).is_file() for name in kustomization["resources"])


def test_the_schema_of_the_values_knows_each_value() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    assert set(values) == set(schema["properties"]) - {"global"}
    for name, value in values.items():
        known = schema["properties"][name]
        if isinstance(value, dict) and known.get("additionalProperties") is False:
            assert set(value) == set(known["properties"]), name


# -- the chart, where Helm is ------------------------------------------------------------------------------------------


def test_the_chart_passes_lint() -> None:
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout


def test_the_manifests_are_up_to_date(tmp_path: Path) -> None:
    environment = {**os.environ, "HELM": find_helm(), "OUT": str(tmp_path)}
    subprocess.run([MANIFESTS / "make.sh"], env=environment, check=True)
    for name in GENERATED:
        assert (tmp_path / name).read_text() == (MANIFESTS / name).read_text(), "run `make manifests`"


def test_everything_switched_on(full: dict[str, Manifest]) -> None:
    assert "replicas" not in full["StatefulSet"]["spec"], "the autoscaler sets them, and an upgrade must not undo that"
    assert full["ScaledObject"]["spec"]["maxReplicaCount"] == 2, "4 partitions, 2 workers in each pod"
    container = container_of(full)
    assert container["args"][-2:] == ["--workers", "2"]
    assert container["image"].endswith("@sha256:" + "0" * 64)
    assert "/etc/lstmstream/secrets" in [mount["mountPath"] for mount in container["volumeMounts"]]
    assert full["StatefulSet"]["metadata"]["name"] == "fraud-lstmstream"
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yml").read_text(encoding="utf-8"))
    text = json.dumps(rules).replace("docs/runbook.md#", "https://runbooks.example/lstmstream#")
    assert full["PrometheusRule"]["spec"] == json.loads(text)


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("replicas=5", "more than the 4 partitions"),
        ("workers=5", "more than the 4 partitions"),
        ("replica=2", "additional properties 'replica' not allowed"),
        ("config.kafka.security.password=secret", "/config/kafka/security/password"),
        ("config.kafka.security.oauth.token=secret", "/config/kafka/security/oauth/token"),
        ("config.kafka.schema_registry.password=secret", "/config/kafka/schema_registry/password"),
        ("config.http.host=127.0.0.1", "/config/http/host"),
        ("image.digest=latest", "/image/digest"),
    ],
)
def test_values_that_cannot_be_right_are_refused(setting: str, complaint: str) -> None:
    made = template(setting)
    assert made.returncode != 0
    assert complaint in made.stderr


def test_a_registry_or_a_token_endpoint_can_be_let_through() -> None:
    made = template("networkPolicy.otherPorts={8081,443}")
    assert made.returncode == 0, made.stderr
    (policy,) = [one for one in yaml.safe_load_all(made.stdout) if one and one["kind"] == "NetworkPolicy"]
    ports = [[port["port"] for port in rule["ports"]] for rule in policy["spec"]["egress"]]
    assert ports == [[53, 53], [9092, 9093], [8081, 443]]


@pytest.mark.parametrize(
    ("settings", "most"), [((), 4), (("keda.maxReplicas=3",), 3), (("keda.maxReplicas=9",), 4), (("workers=3",), 1)]
)
def test_the_bound_of_the_autoscaler(settings: tuple[str, ...], most: int) -> None:
    made = template("keda.enabled=true", *settings)
    assert by_kind(yaml.safe_load_all(made.stdout))["ScaledObject"]["spec"]["maxReplicaCount"] == most
