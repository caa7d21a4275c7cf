"""Dockerfiles are clean, and the packages of the images are those that CI tests."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from echolm.cli.main import build_parser
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).resolve().parents[3]
DOCKER = REPOSITORY / "docker"
DOCKERFILES = sorted(DOCKER.glob("Dockerfile.*"))
IMAGE_EXTRAS = ("local", "privacy")
UNUSED = {"sentence-transformers"}
"""Asked for by the package with MiniLM's weights, which is all of it that is used."""


def instructions(path: Path) -> Iterator[tuple[str, str]]:
    """Each instruction of a Dockerfile and its arguments, continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            yield name.upper(), rest.strip()


def of(path: Path, name: str) -> list[str]:
    return [rest for instruction, rest in instructions(path) if instruction == name]


def lock(path: Path) -> dict[str, list[str]]:
    """Lines of a lock file by package."""
    versions: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        versions.setdefault(canonicalize_name(line.split("==")[0]), []).append(line)
    return versions


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert hadolint is not None, "hadolint not found; install it: make install"
    done = subprocess.run(
        [hadolint, "--no-color", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_an_image_starts_from_pinned_ones(path: Path) -> None:
    defaults = dict(argument.split("=") for argument in of(path, "ARG"))
    for image in of(path, "FROM"):
        name = re.sub(r"\$\{(\w+)\}", lambda match: defaults[match[1]], image.split()[0])
        assert re.fullmatch(r"[\w./-]+:[0-9]+\.[0-9]+[\w.-]*", name), name


def test_onnx_runtimes_backend_comes_from_the_same_release() -> None:
    backend, final = of(DOCKER / "Dockerfile.trtllm", "FROM")
    assert backend == "nvcr.io/nvidia/tritonserver:${TRITON}-py3 AS triton"
    assert final == "nvcr.io/nvidia/tritonserver:${TRITON}-trtllm-python-py3"
    same = {of(DOCKER / f"Dockerfile.{name}", "ARG")[0] for name in ("trtllm", "vllm")}
    assert len(same) == 1


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_an_image_runs_as_a_user_whom_kubernetes_can_tell_from_root(path: Path) -> None:
    assert of(path, "USER") == ["1000:1000"]
    after = [name for name, _ in instructions(path)]
    assert "RUN" not in after[after.index("USER") :]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_an_image_is_healthy_when_its_models_are_ready(path: Path) -> None:
    [check] = of(path, "HEALTHCHECK")
    assert "127.0.0.1:8002/health/ready" in check
    assert of(path, "EXPOSE") == ["9000 8002"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_an_image_starts_a_command_that_there_is(path: Path) -> None:
    [entry], [command] = of(path, "ENTRYPOINT"), of(path, "CMD")
    assert json.loads(entry)[-1] == "echolm"
    options = build_parser().parse_args(json.loads(command))
    assert options.command == "serve"
    # Others reach what asks for keys, and the metrics.
    assert (options.host, options.metrics_host) == ("127.0.0.1", "0.0.0.0")
    assert " ECHOLM_GATEWAY__HOST=0.0.0.0 " in f"{' '.join(of(path, 'ENV'))} "
    profiles = {"cpu": "local", "trtllm": "tensorrt_llm", "vllm": "vllm"}
    assert options.profile == profiles[path.suffix.removeprefix(".")]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_what_is_copied_is_there_and_is_not_kept_out(path: Path) -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text().split()
    for sources in of(path, "COPY"):
        if sources.startswith("--from"):
            continue
        for source in sources.split()[:-1]:
            assert (REPOSITORY / source).exists(), source
            assert not any(source == name or source.startswith(f"{name}/") for name in ignored)


def test_no_secret_gets_into_an_image() -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text().split()
    assert {"docker/.env", "docker/secrets"} <= set(ignored)


def test_the_images_packages_have_the_tested_versions() -> None:
    tested, images = lock(REPOSITORY / "requirements.lock"), lock(DOCKER / "requirements.lock")
    assert {name: tested.get(name) for name in images} == images


@pytest.mark.skipif(sys.version_info < (3, 11), reason="of packages for a later Python")
def test_the_images_have_all_that_is_needed_and_nothing_for_development() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"]]
    for extra in IMAGE_EXTRAS:
        needed += project["optional-dependencies"][extra]
    names: set[str] = set()
    todo = [Requirement(text) for text in needed]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        marker = requirement.marker
        if name in names | UNUSED or not (marker is None or marker.evaluate({"extra": ""})):
            continue
        names.add(name)
        for text in metadata.requires(name) or ():
            nested = Requirement(text)
            chosen = ("", *requirement.extras)
            if nested.marker is None or any(nested.marker.evaluate({"extra": e}) for e in chosen):
                nested.marker = None
                todo.append(nested)
    # Lines for other Python versions are there as well.
    for name, lines in lock(DOCKER / "requirements.lock").items():
        markers = [Requirement(line).marker for line in lines]
        if name not in names:
            environment = default_environment()
            assert not any(m is None or m.evaluate(dict(environment)) for m in markers), name
    assert names <= set(lock(DOCKER / "requirements.lock"))
