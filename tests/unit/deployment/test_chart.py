"""The Helm chart: valid for Kubernetes, safe, consistent, and its settings are EchoLM's."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from echolm.cli.main import build_parser
from echolm.settings import Settings
from echolm.settings.loading import load_settings
from helm_chart import CHART, Helm, by_kind
from promql_checks import problems

VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
KUBERNETES = ("1.29", "1.37")
CUSTOM = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}
"""Kinds that Kubernetes itself does not have."""
KEY = "signingKey.value=key,apiKeys.existingSecret=keys"


def rendered(helm: Helm, name: str) -> list[dict[str, Any]]:
    return helm.objects("--values", str(CHART / "ci" / f"{name}-values.yaml"))


def pods(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for item in objects:
        if item["kind"] == "StatefulSet":
            yield item["spec"]["template"]["spec"]


def containers(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for pod in pods(objects):
        yield from pod.get("initContainers", ())
        yield from pod["containers"]


def triton(objects: list[dict[str, Any]]) -> dict[str, Any]:
    [container] = [c for c in containers(objects) if c["name"] == "triton"]
    return container


@pytest.mark.parametrize("path", VALUES, ids=lambda p: p.name)
def test_helm_finds_nothing_to_complain_of(helm: Helm, path: Path) -> None:
    done = helm.run("lint", "--strict", str(CHART), "--values", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("path", VALUES, ids=lambda p: p.name)
def test_every_object_is_valid_for_kubernetes(helm: Helm, path: Path, version: str) -> None:
    checked = 0
    for item in helm.objects("--values", str(path), "--kube-version", version):
        if item["kind"] not in CUSTOM:
            kubernetes_validate.validate(item, version, strict=True)
            checked += 1
    assert checked >= 4


@pytest.mark.parametrize("path", VALUES, ids=lambda p: p.name)
def test_no_two_objects_or_variables_have_one_name(helm: Helm, path: Path) -> None:
    objects = helm.objects("--values", str(path))
    names = [(o["kind"], o["metadata"]["name"]) for o in objects]
    assert len(set(names)) == len(names)
    for container in containers(objects):
        variables = [v["name"] for v in container.get("env", ())]
        assert len(set(variables)) == len(variables)


@pytest.mark.parametrize("path", VALUES, ids=lambda p: p.name)
def test_pods_have_no_rights_that_they_do_not_need(helm: Helm, path: Path) -> None:
    objects = helm.objects("--values", str(path))
    for pod in pods(objects):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
    for container in containers(objects):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"]
        assert "cpu" in container["resources"]["requests"]


@pytest.mark.parametrize("path", VALUES, ids=lambda p: p.name)
def test_no_service_link_is_taken_for_a_setting(helm: Helm, path: Path) -> None:
    """Kubernetes would set ECHOLM_SERVICE_HOST, and unknown ECHOLM_… stop the start."""
    for pod in pods(helm.objects("--values", str(path))):
        assert pod["enableServiceLinks"] is False


@pytest.mark.parametrize("path", VALUES, ids=lambda p: p.name)
def test_what_is_mounted_is_there(helm: Helm, path: Path) -> None:
    objects = helm.objects("--values", str(path))
    names = {o["metadata"]["name"] for o in objects if o["kind"] == "ConfigMap"}
    for item in objects:
        if item["kind"] != "StatefulSet":
            continue
        pod = item["spec"]["template"]["spec"]
        claims = {c["metadata"]["name"] for c in item["spec"].get("volumeClaimTemplates", ())}
        volumes = {v["name"]: v for v in pod.get("volumes", ())}
        assert not claims & set(volumes)
        mounted = {
            mount["name"]
            for container in (*pod.get("initContainers", ()), *pod["containers"])
            for mount in container["volumeMounts"]
        }
        assert mounted == claims | set(volumes)
        for volume in volumes.values():
            assert "configMap" not in volume or volume["configMap"]["name"] in names


@pytest.mark.parametrize("path", VALUES, ids=lambda p: p.name)
def test_selectors_find_their_pods(helm: Helm, path: Path) -> None:
    objects = helm.objects("--values", str(path))
    sets = [o for o in objects if o["kind"] == "StatefulSet"]
    labels = [s["spec"]["template"]["metadata"]["labels"] for s in sets]
    services = {o["metadata"]["name"]: o for o in objects if o["kind"] == "Service"}
    for item in sets:
        pod_labels = item["spec"]["template"]["metadata"]["labels"]
        assert pod_labels.items() >= item["spec"]["selector"]["matchLabels"].items()
        assert services[item["spec"]["serviceName"]]["spec"]["clusterIP"] == "None"
    selectors = [o["spec"]["selector"] for o in services.values()]
    selectors += [
        o["spec"]["selector"]["matchLabels"] for o in objects if o["kind"] == "PodDisruptionBudget"
    ]
    for selector in selectors:
        assert sum(pod_labels.items() >= selector.items() for pod_labels in labels) == 1
    for service in services.values():
        [pod] = [
            s["spec"]["template"]["spec"]
            for s in sets
            if s["spec"]["template"]["metadata"]["labels"].items()
            >= service["spec"]["selector"].items()
        ]
        ports = {port["name"] for c in pod["containers"] for port in c["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


@pytest.mark.parametrize("path", VALUES, ids=lambda p: p.name)
def test_requests_come_only_when_the_models_are_ready(helm: Helm, path: Path) -> None:
    container = triton(helm.objects("--values", str(path)))
    for probe, state in (("startup", "ready"), ("readiness", "ready"), ("liveness", "live")):
        check = container[f"{probe}Probe"]["httpGet"]
        assert check == {"path": f"/health/{state}", "port": "metrics"}
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 1_800


def test_shared_memory_is_memory_and_within_the_pods_limit(helm: Helm) -> None:
    [pod] = pods(rendered(helm, "vllm"))
    [shm] = [v for v in pod["volumes"] if v["name"] == "shm"]
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    assert {"name": "shm", "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"]


# Settings


def settings_of(
    objects: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """EchoLM's settings as the container reads them."""
    for name in os.environ:
        if name.startswith("ECHOLM_"):
            monkeypatch.delenv(name)
    environment: dict[str, str] = {}
    for variable in triton(objects)["env"]:
        secret = variable.get("valueFrom", {}).get("secretKeyRef")
        value = f"secret{secret['key'].title().replace('-', '')}" if secret else variable["value"]
        if secret and secret["key"] == "url":
            value = "redis://redis:6379/0"
        environment[variable["name"]] = re.sub(r"\$\((\w+)\)", lambda m: environment[m[1]], value)
    maps = [o for o in objects if o["kind"] == "ConfigMap" and "echolm.toml" in o["data"]]
    if maps:
        (tmp_path / "echolm.toml").write_text(maps[0]["data"]["echolm.toml"])
        assert environment["ECHOLM_CONFIG"] == "/etc/echolm/echolm.toml"
        environment["ECHOLM_CONFIG"] = str(tmp_path / "echolm.toml")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return load_settings()


@pytest.mark.parametrize("path", VALUES, ids=lambda p: p.name)
def test_echolm_takes_its_settings(
    helm: Helm, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(helm.objects("--values", str(path)), tmp_path, monkeypatch)
    assert settings.feedback.signing_key.get_secret_value() == "secretSigningKey"
    assert settings.load_table_path == Path("/dev/shm")


def test_file_settings_and_secrets_come_together(
    helm: Helm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(rendered(helm, "cluster"), tmp_path, monkeypatch)
    assert settings.retrieval.index_params == {"M": 16, "efConstruction": 200}
    assert settings.retrieval.partition_by_tenant
    assert settings.retrieval.milvus_uri == "http://milvus.milvus.svc:19530"
    assert settings.retrieval.milvus_token.get_secret_value() == "secretToken"
    assert settings.event_log == "redis://:secretRedisPassword@release-echolm-redis:6379/0"
    assert settings.routing.cost_weight == 0.1
    assert settings.limits.max_in_flight == 512


@pytest.mark.parametrize("path", VALUES, ids=lambda p: p.name)
def test_containers_start_commands_that_there_are(helm: Helm, path: Path) -> None:
    served = build_parser().parse_args(triton(helm.objects("--values", str(path)))["args"])
    assert served.command == "serve"
    assert (served.metrics_host or served.host) == "0.0.0.0"


def test_tritons_ports_are_open_only_where_they_are_asked_for(helm: Helm) -> None:
    def doors(objects: list[dict[str, Any]]) -> list[set[str]]:
        services = [o for o in objects if o["kind"] == "Service"]
        services = [s for s in services if "redis" not in s["metadata"]["name"]]
        found = [{port["name"] for port in s["spec"]["ports"]} for s in services]
        return [{port["name"] for port in triton(objects)["ports"]}, *found]

    closed, opened = rendered(helm, "cluster"), rendered(helm, "vllm")
    assert doors(closed) == [{"openai", "metrics"}, {"openai"}, {"metrics"}]
    tritons = {"http", "grpc"}
    assert doors(opened) == [
        {"openai", "metrics", *tritons},
        {"openai", *tritons},
        {"metrics", *tritons},
    ]
    served = build_parser().parse_args(triton(closed)["args"])
    assert served.host == "127.0.0.1"
    assert build_parser().parse_args(triton(opened)["args"]).host == "0.0.0.0"


@pytest.mark.parametrize("path", VALUES, ids=lambda p: p.name)
def test_the_gateway_reads_its_keys_from_a_mounted_secret(helm: Helm, path: Path) -> None:
    objects = helm.objects("--values", str(path))
    container = triton(objects)
    [file] = [v["value"] for v in container["env"] if v["name"] == "ECHOLM_GATEWAY__KEYS_PATH"]
    [mount] = [m for m in container["volumeMounts"] if m["name"] == "api-keys"]
    assert mount == {"name": "api-keys", "mountPath": str(Path(file).parent), "readOnly": True}
    volumes = [v for pod in pods(objects) for v in pod.get("volumes", ())]
    [volume] = [v for v in volumes if v["name"] == "api-keys"]
    [item] = volume["secret"]["items"]
    assert item["path"] == Path(file).name
    for secret in (o for o in objects if o["kind"] == "Secret"):
        if secret["metadata"]["name"] == volume["secret"]["secretName"]:
            assert json.loads(secret["stringData"][item["key"]])["keys"]


def test_secrets_are_in_secrets_only(helm: Helm) -> None:
    objects = helm.objects(
        *("--set", "signingKey.value=s3cret1,apiKeys.value=s3cret3"),
        *("--set", "redis.enabled=true"),
        *("--set", "redis.password=s3cret2"),
    )
    others = [o for o in objects if o["kind"] != "Secret"]
    assert "s3cret" not in yaml.safe_dump_all(others)
    secret = by_kind(objects, "Secret")
    assert secret["stringData"] == {
        "signing-key": "s3cret1",
        "redis-password": "s3cret2",
        "keys.json": "s3cret3",
    }


def test_an_existing_secret_is_taken_as_it_is(helm: Helm) -> None:
    keys = "apiKeys.existingSecret=mine,apiKeys.value=unused"
    objects = helm.objects(
        "--set", f"signingKey.existingSecret=mine,signingKey.value=unused,{keys}"
    )
    assert not [o for o in objects if o["kind"] == "Secret"]
    reference = triton(objects)["env"][0]["valueFrom"]["secretKeyRef"]
    assert reference == {"name": "mine", "key": "signing-key"}


def test_a_changed_configuration_replaces_the_pods(helm: Helm) -> None:
    def checksum(config: str) -> str:
        objects = helm.objects("--set", KEY, "--set-string", f"config={config}")
        annotations = by_kind(objects, "StatefulSet")["spec"]["template"]["metadata"]["annotations"]
        return str(annotations["checksum/config"])

    assert checksum("[limits]") != checksum("[routing]")


# GPUs


@pytest.mark.parametrize(
    ("name", "python", "gpus", "image"),
    [
        ("vllm", "/opt/vllm/bin/python", "2", "registry.example.com/echolm:vllm"),
        (
            "tensorrt-llm",
            "/usr/bin/python3",
            "1",
            "registry.example.com/echolm-with-models:1.0",
        ),
    ],
)
def test_on_gpus_the_models_are_built_before_they_are_served(
    helm: Helm, name: str, python: str, gpus: str, image: str
) -> None:
    [pod] = pods(rendered(helm, name))
    [build], [serve] = pod["initContainers"], pod["containers"]
    assert build["image"] == serve["image"] == image
    assert serve["resources"]["limits"]["nvidia.com/gpu"] == gpus
    assert "nvidia.com/gpu" not in build["resources"]["limits"]
    profile = name.replace("-", "_")
    assert build["args"][0] == "build"
    assert {
        f"--profile={profile}",
        "--small=/checkpoints/small",
        f"--set=python={python}",
        "--output=/models/repository",
    } <= set(build["args"])
    assert serve["args"][:2] == ["serve", f"--profile={profile}"]
    assert {"name": "models", "mountPath": "/models", "readOnly": True} in serve["volumeMounts"]
    dockerfile = {"vllm": "vllm", "tensorrt-llm": "trtllm"}[name]
    text = (CHART.parents[1] / f"Dockerfile.{dockerfile}").read_text()
    assert "ECHOLM_CONFIG=/models/repository/echolm.toml" in text


@pytest.mark.parametrize("name", ["vllm", "tensorrt-llm"])
def test_the_models_are_built_by_a_command_that_there_is(helm: Helm, name: str) -> None:
    pytest.importorskip("echolm.serving.build")
    [pod] = pods(rendered(helm, name))
    options = build_parser().parse_args(pod["initContainers"][0]["args"])
    assert options.command == "build" and options.force
    assert (options.small, options.large) == (
        "/checkpoints/small",
        "/checkpoints/large",
    )
    assert options.output == Path("/models/repository")


def test_checkpoints_on_a_claim_are_read_only(helm: Helm) -> None:
    [pod] = pods(rendered(helm, "vllm"))
    [volume] = [v for v in pod["volumes"] if v["name"] == "checkpoints"]
    assert volume["persistentVolumeClaim"] == {"claimName": "checkpoints", "readOnly": True}


def test_a_cpu_replica_asks_for_no_gpu(helm: Helm) -> None:
    [pod] = pods(rendered(helm, "local"))
    assert "initContainers" not in pod
    assert "gpu" not in json.dumps(pod["containers"][0]["resources"])


# Replicas


def test_an_autoscaler_owns_the_number_of_replicas(helm: Helm) -> None:
    objects = rendered(helm, "cluster")
    server = by_kind(objects, "StatefulSet", "release-echolm")
    assert "replicas" not in server["spec"]
    scaler = by_kind(objects, "HorizontalPodAutoscaler")["spec"]
    assert scaler["scaleTargetRef"]["name"] == server["metadata"]["name"]
    thresholds = {
        m["pods"]["metric"]["name"]: m["pods"]["target"]["averageValue"] for m in scaler["metrics"]
    }
    assert thresholds == {"echolm_load_bias": "0.05", "echolm_load": "0.8"}
    adapter = yaml.safe_load((CHART.parent / "prometheus-adapter-values.yaml").read_text())
    rules = adapter["rules"]["custom"]
    assert {r["seriesQuery"].partition("{")[0] for r in rules} == set(thresholds)
    for rule in rules:
        query = rule["metricsQuery"].replace("<<.GroupBy>>", "instance")
        name = rule["seriesQuery"].partition("{")[0]
        query = query.replace("<<.Series>>", name).replace("<<.LabelMatchers>>", "")
        assert problems(query) == []


def test_keda_asks_for_metrics_that_exist(helm: Helm) -> None:
    objects = rendered(helm, "vllm")
    triggers = by_kind(objects, "ScaledObject")["spec"]["triggers"]
    assert len(triggers) == 2
    services = {o["metadata"]["name"] for o in objects if o["kind"] == "Service"}
    for trigger in triggers:
        query = trigger["metadata"]["query"]
        match = re.search(r'namespace="(.+?)", service="(.+?)"', query)
        assert match and match[1] == "ns" and match[2] in services
        assert problems(re.sub(r"{.*?}", "", query).replace("by (pod)", "by (instance)")) == []


def test_a_write_ahead_log_outlives_its_pod(helm: Helm) -> None:
    server = by_kind(rendered(helm, "cluster"), "StatefulSet", "release-echolm")["spec"]
    [claim] = server["volumeClaimTemplates"]
    assert {"name": claim["metadata"]["name"], "mountPath": "/data"} in server["template"]["spec"][
        "containers"
    ][0]["volumeMounts"]
    retention = server["persistentVolumeClaimRetentionPolicy"]
    assert retention == {"whenDeleted": "Retain", "whenScaled": "Retain"}


def test_the_charts_redis_keeps_what_it_acknowledges(helm: Helm) -> None:
    redis = by_kind(rendered(helm, "cluster"), "StatefulSet", "release-echolm-redis")["spec"]
    [container] = redis["template"]["spec"]["containers"]
    program, *words = container["args"]
    assert program == "redis-server"
    compose = yaml.safe_load((CHART.parents[1] / "compose.yaml").read_text())["services"]["redis"]
    assert container["image"] == compose["image"]
    shared = words[: words.index("--requirepass")]
    assert shared == compose["command"][1 : compose["command"].index("--aclfile")]
    assert redis["replicas"] == 1


# Monitoring


def test_the_metrics_of_each_replica_are_read(helm: Helm) -> None:
    objects = rendered(helm, "cluster")
    monitor = by_kind(objects, "ServiceMonitor")["spec"]
    scraped = [
        o
        for o in objects
        if o["kind"] == "Service"
        and o["metadata"]["labels"].items() >= monitor["selector"]["matchLabels"].items()
    ]
    assert [o["metadata"]["name"] for o in scraped] == ["release-echolm-replicas"]
    ports = {port["name"] for port in scraped[0]["spec"]["ports"]}
    assert {endpoint["port"] for endpoint in monitor["endpoints"]} <= ports
    # The alert EchoLMDown asks for the job of this name.
    assert scraped[0]["metadata"]["labels"][monitor["jobLabel"]] == "echolm"


def test_alerts_and_dashboard_are_those_of_the_compose_file(helm: Helm) -> None:
    objects, docker = rendered(helm, "cluster"), CHART.parents[1]
    alerts = yaml.safe_load((docker / "prometheus" / "alerts.yaml").read_text())
    assert by_kind(objects, "PrometheusRule")["spec"] == alerts
    dashboard = by_kind(objects, "ConfigMap", "release-echolm-dashboard")
    file = (docker / "grafana" / "dashboards" / "echolm.json").read_text()
    assert json.loads(dashboard["data"]["echolm.json"]) == json.loads(file)
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"


# What is refused


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((), "signingKey: expected existingSecret or value, got neither"),
        (("signingKey.value=key",), "apiKeys: expected existingSecret or value, got neither"),
        ((KEY, "settings.GATEWAY__ENABLED=false"), "GATEWAY__ENABLED"),
        ((KEY, "replicas=2"), "milvus.uri: expected a Milvus server for several replicas"),
        (
            (KEY, "replicas=2", "milvus.uri=http://m:19530"),
            "eventLog.existingSecret: expected a Redis for several replicas",
        ),
        (
            (KEY, "redis.enabled=true", "redis.password=a", "eventLog.existingSecret=x"),
            "expected one of them, got both",
        ),
        ((KEY, "redis.enabled=true"), "redis: expected existingSecret or password"),
        ((KEY, "profile=vllm"), "models.small, models.large: expected the checkpoints"),
        (
            (KEY, "profile=vllm", "models.small=/a", "models.large=/b", "config=x"),
            "config: expected none on GPUs",
        ),
        ((KEY, "profile=cuda"), "profile"),
        ((KEY, "replica=2"), "replica"),
        ((KEY, "redis.password=a/b"), "password"),
        ((KEY, "settings.RETRIEVAL__MILVUS_URI=x"), "RETRIEVAL__MILVUS_URI"),
        ((KEY, "sharedMemory=lots"), "sharedMemory"),
    ],
)
def test_wrong_values_are_refused(helm: Helm, values: tuple[str, ...], message: str) -> None:
    assert message in helm.refusal(*values)


def test_the_schema_knows_all_values_and_no_others() -> None:
    def keys(schema: dict[str, Any]) -> Any:
        if schema.get("additionalProperties") is not False:
            return None
        return {name: keys(part) for name, part in schema["properties"].items()}

    def named(values: Any, known: Any) -> Any:
        if known is None:
            return None
        return {name: named(value, known.get(name)) for name, value in values.items()}

    known = keys(json.loads((CHART / "values.schema.json").read_text()))
    del known["global"]
    optional = {"timeoutSeconds", "failureThreshold", "successThreshold", "initialDelaySeconds"}
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    names = named(values, known)
    for probe in known["probes"]:
        assert set(names["probes"][probe]) <= set(known["probes"][probe])
        assert set(known["probes"][probe]) - set(names["probes"][probe]) <= optional
    assert {**names, "probes": 0} == {**known, "probes": 0}


def test_the_notes_say_how_to_ask(helm: Helm) -> None:
    done = helm.run(
        *("install", "release", str(CHART), "--dry-run=client", "--namespace", "ns"),
        *("--set", KEY),
    )
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    assert "rollout status statefulset/release-echolm" in notes
    assert "/v1/chat/completions" in notes
    assert "Examples are in Milvus Lite" in notes
