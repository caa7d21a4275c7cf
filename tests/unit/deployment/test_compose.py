"""The compose files fit the Compose specification, EchoLM's settings and each other."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from echolm.cli.main import build_parser
from echolm.gateway.keys import KeyFile, Keyring
from echolm.settings import Settings
from echolm.settings.loading import load_settings

REPOSITORY = Path(__file__).resolve().parents[3]
DOCKER = REPOSITORY / "docker"
FILES = sorted(DOCKER.glob("compose*.yaml"))
GPU_FILES = [path for path in FILES if path.name != "compose.yaml"]
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
NOT_ROOT = {"echolm", "redis", "prometheus", "grafana"}
"""Milvus, etcd and MinIO have data folders of root's in their images."""


@pytest.fixture
def docker(tmp_path: Path) -> Path:
    """A copy of ``docker`` with secrets."""
    copy = tmp_path / "docker"
    shutil.copytree(DOCKER, copy, ignore=shutil.ignore_patterns("secrets", ".env", "helm"))
    subprocess.run([copy / "make_secrets.sh"], check=True, capture_output=True)
    return copy


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_a_file_fits_the_compose_specification(path: Path) -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*check, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_yaml_is_clean() -> None:
    files = [
        path
        for path in [*DOCKER.rglob("*.yaml"), *Path(__file__).parent.glob("*.yaml")]
        if "templates" not in path.parts
    ]
    assert len(files) > 8
    check = [sys.executable, "-m", "yamllint", "--strict", "--config-file"]
    done = subprocess.run(
        [*check, str(DOCKER / ".yamllint.yaml"), *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_pinned(name: str) -> None:
    image = SERVICES[name]["image"]
    assert re.search(r":(v?\d+\.\d+\.\d+|RELEASE\.\d)", image) or image == "echolm:cpu"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_bounded_and_tells_its_health(name: str) -> None:
    service = SERVICES[name]
    assert service["deploy"]["resources"]["limits"]["memory"]
    # EchoLM's check is in its image.
    assert "healthcheck" in service or "build" in service
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", sorted(NOT_ROOT))
def test_a_service_that_can_do_without_root_does(name: str) -> None:
    assert int(SERVICES[name]["user"].split(":")[0]) > 0
    assert SERVICES[name]["cap_drop"] == ["ALL"]


@pytest.mark.parametrize("name", SERVICES)
def test_only_this_machine_reaches_what_has_no_passwords(name: str) -> None:
    for port in SERVICES[name].get("ports", ()):
        assert port.startswith(("127.0.0.1:", "${BIND_ADDRESS:-127.0.0.1}:"))
    if name in ("milvus", "etcd", "minio", "redis"):
        assert SERVICES[name]["networks"] == ["back"]
    assert COMPOSE["networks"]["back"]["internal"] is True


def test_what_holds_data_keeps_it_in_a_volume() -> None:
    used = {
        volume.split(":")[0]
        for service in SERVICES.values()
        for volume in service["volumes"]
        if not volume.startswith(".")
    }
    assert used == set(COMPOSE["volumes"]) and len(used) == len(SERVICES)


def test_mounted_files_are_there() -> None:
    mounts = [v for s in SERVICES.values() for v in s["volumes"] if v.startswith(".")]
    assert len(mounts) == 4
    for mount in mounts:
        assert (DOCKER / mount.split(":")[0]).exists(), mount
        assert mount.endswith(":ro")


def test_secrets_are_made_once_and_are_nobody_elses(docker: Path) -> None:
    files = {path: path.read_text() for path in (docker / "secrets").iterdir()}
    assert {path.name for path in files} == set(COMPOSE["secrets"])
    for name, secret in COMPOSE["secrets"].items():
        assert secret["file"] == f"./secrets/{name}"
    env = (docker / ".env").read_text()
    assert re.fullmatch(r"MINIO_PASSWORD=[0-9a-f]{64}\n", env)
    assert len({*files.values(), env}) == len(files) + 1
    assert (docker / "secrets").stat().st_mode & 0o777 == 0o700
    assert (docker / ".env").stat().st_mode & 0o777 == 0o600
    subprocess.run([docker / "make_secrets.sh"], check=True, capture_output=True)
    assert {path: path.read_text() for path in files} == files
    assert (docker / ".env").read_text() == env


def settings_of(docker: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """EchoLM's settings as the container reads them."""
    for name in os.environ:
        if name.startswith("ECHOLM_"):
            monkeypatch.delenv(name)
    for name, value in SERVICES["echolm"]["environment"].items():
        monkeypatch.setenv(name, value.replace("/run/secrets", str(docker / "secrets")))
    return load_settings()


def test_echolm_takes_its_settings(docker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(docker, monkeypatch)
    assert urlsplit(settings.retrieval.milvus_uri).hostname in SERVICES
    assert settings.retrieval.index_params == {"M": 16, "efConstruction": 200}
    assert settings.retrieval.search_params == {"ef": 64}
    log = urlsplit(settings.event_log)
    assert (log.hostname, log.port, log.username) == ("redis", 6379, "echolm")
    key = (docker / "secrets" / "signing_key").read_text().strip()
    assert settings.feedback.signing_key.get_secret_value() == key
    assert settings.gateway.enabled and settings.keys_are_required


def test_the_first_api_key_is_shown_once_and_can_be_joined_by_others(
    docker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = docker / "secrets" / "api_keys"
    file.unlink()
    shown = subprocess.run([docker / "make_secrets.sh"], check=True, capture_output=True, text=True)
    [secret] = re.findall(r"sk-echolm-\w+", shown.stdout)
    assert secret not in file.read_text()
    KeyFile(file).add(name="second")
    # The container's user is not that of the host.
    assert file.stat().st_mode & 0o777 == 0o444
    keyring = Keyring(KeyFile(settings_of(docker, monkeypatch).keys_path), required=True)
    assert keyring.check(secret).name == "first"


def test_what_is_published_asks_for_a_key() -> None:
    targets = {port.split(":")[-1] for port in SERVICES["echolm"]["ports"]}
    assert targets == {"9000", "8002"}
    [metrics] = [port for port in SERVICES["echolm"]["ports"] if port.endswith(":8002")]
    assert metrics.startswith("127.0.0.1:")


def test_a_secret_is_given_to_those_that_need_it_only() -> None:
    for service in SERVICES.values():
        named = set(re.findall(r"/run/secrets/([\w.]+)", yaml.safe_dump(service)))
        assert named == set(service.get("secrets", ()))


def test_prometheus_reads_services_of_the_file() -> None:
    config = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yaml").read_text())
    for job in config["scrape_configs"]:
        [address] = job["static_configs"][0]["targets"]
        assert address.split(":")[0] in {*SERVICES, "localhost"}
    assert "echolm" in {job["job_name"] for job in config["scrape_configs"]}, "alerts ask for it"


@pytest.mark.parametrize("path", GPU_FILES, ids=lambda p: p.name)
def test_on_gpus_the_models_are_built_before_they_are_served(path: Path) -> None:
    services = yaml.safe_load(path.read_text())["services"]
    models, echolm = services["models"], services["echolm"]
    assert echolm["depends_on"]["models"] == {"condition": "service_completed_successfully"}
    assert models["image"] == echolm["image"] != SERVICES["echolm"]["image"]
    assert models["build"] == echolm["build"]
    assert models["volumes"] == echolm["volumes"]
    [device] = echolm["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])

    dockerfile = (REPOSITORY / models["build"]["dockerfile"]).read_text()
    command = re.sub(r"\$\{(\w+)[^}]*\}", r"\1", models["command"]).split()
    assert command[0] == "build"
    python = command[command.index("--set") + 1].removeprefix("python=")
    assert python.startswith("/usr/bin/") or f"-m venv --without-pip {python[:-11]}" in dockerfile
    assert f"ECHOLM_CONFIG={command[command.index('--output') + 1]}/echolm.toml" in dockerfile
    served = build_parser().parse_args(echolm["command"])
    assert (served.host, served.metrics_host) == ("127.0.0.1", "0.0.0.0")
    assert served.profile == command[command.index("--profile") + 1]


@pytest.mark.parametrize("path", GPU_FILES, ids=lambda p: p.name)
def test_the_models_are_built_by_a_command_that_there_is(path: Path) -> None:
    pytest.importorskip("echolm.serving.build")
    text = yaml.safe_load(path.read_text())["services"]["models"]["command"]
    values = {"BUILD_OPTIONS": "--large-gpus 1 --large-context 4096"}
    text = re.sub(r"\$\{(\w+)[^}]*\}", lambda match: values.get(match[1], match[1].lower()), text)
    options = build_parser().parse_args(text.split())
    assert (options.small, options.large) == (
        "/checkpoints/small_llm",
        "/checkpoints/large_llm",
    )
    assert (options.large_gpus, options.large_context) == ("1", 4096)
    assert options.output == Path("/models/repository") and options.force


def dictionary(options: list[str]) -> dict[str, Any]:
    return dict(zip(options[::2], options[1::2], strict=True))


def test_redis_keeps_what_it_acknowledges() -> None:
    program, *options = SERVICES["redis"]["command"]
    assert program == "redis-server"
    assert dictionary(options) == {
        "--appendonly": "yes",
        "--appendfsync": "always",
        "--maxmemory-policy": "noeviction",
        "--aclfile": "/run/secrets/redis.acl",
    }
