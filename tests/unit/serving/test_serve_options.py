from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from echolm.cli import main as cli
from echolm.cli.main import build_parser
from echolm.embedding import minilm
from echolm.embedding.spec import EmbedderSpec
from echolm.errors import ConfigurationError
from echolm.serving import Endpoints, ServeOptions
from echolm.serving import serve as module
from echolm.serving.data_dir import DataDir
from echolm.serving.serve import earlier_data, model_repositories, prepare_embedder
from echolm.serving.triton_installation import TritonInstallation, find_triton
from echolm.serving.triton_server import (
    RESTRICTED,
    TritonOptions,
    TritonServer,
    connect_host,
    restriction,
)
from echolm.settings import EmbeddingSettings, Settings
from echolm_client.cli import exit_codes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("core", "local", "vllm"):
        (tmp_path / "model_repository" / name / "model").mkdir(parents=True)
        (tmp_path / "model_repository" / name / "model" / "config.pbtxt").touch()
    (tmp_path / "model_repository" / "data").mkdir()
    return tmp_path


def test_core_comes_with_the_profile_and_extra_repositories(root: Path) -> None:
    options = ServeOptions(profile="vllm", repository_root=root, model_repositories=(root / "x",))
    models = root / "model_repository"
    assert model_repositories(options) == (models / "core", models / "vllm", root / "x")


def test_repository_root_may_be_the_model_repository_itself(root: Path) -> None:
    models = root / "model_repository"
    options = ServeOptions(repository_root=models)
    assert model_repositories(options) == (models / "core", models / "local")


def test_checkout_of_the_package_is_the_default_root() -> None:
    here = Path(__file__).resolve().parents[3] / "model_repository"
    assert model_repositories(ServeOptions()) == (here / "core", here / "local")


def test_without_profile_only_the_named_repositories_are_served(tmp_path: Path) -> None:
    options = ServeOptions(profile=None, model_repositories=(tmp_path,))
    assert model_repositories(options) == (tmp_path,)


def test_unknown_profile_is_refused_with_the_known_ones(root: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"expected one of local, vllm .* got 'gpu'"):
        model_repositories(ServeOptions(profile="gpu", repository_root=root))


def test_root_without_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--repository-root"):
        model_repositories(ServeOptions(repository_root=tmp_path))


def embedder(directory: Path) -> Settings:
    return Settings(embedding=EmbeddingSettings(model_dir=directory))


def write_embedder(directory: Path, **values: Any) -> None:
    for file in ("model.onnx", "tokenizer.json"):
        (directory / file).write_text("own")
    spec = {"name": "own", "dimension": 8, "max_tokens": 32, **values}
    (directory / "embedder.json").write_text(json.dumps(spec))


def test_complete_embedder_is_left_alone(tmp_path: Path) -> None:
    write_embedder(tmp_path)
    prepare_embedder(embedder(tmp_path), pytest.fail)
    assert (tmp_path / "model.onnx").read_text() == "own"


def test_embedder_of_an_earlier_version_is_built_anew_in_its_form(tmp_path: Path) -> None:
    write_embedder(tmp_path, runtime="onnxruntime", source_sha256=minilm.SHA256)
    messages: list[str] = []
    prepare_embedder(embedder(tmp_path), messages.append)
    assert "anew" in messages[0]
    spec = EmbedderSpec.read(tmp_path)
    assert (spec.runtime, spec.graph_version) == ("onnxruntime", minilm.GRAPH_VERSION)
    prepare_embedder(embedder(tmp_path), pytest.fail)


def test_partial_embedder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("own")
    with pytest.raises(ConfigurationError, match=r"got no tokenizer\.json, embedder\.json"):
        prepare_embedder(embedder(tmp_path), pytest.fail)
    assert (tmp_path / "model.onnx").read_text() == "own"


def test_missing_embedder_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Path] = []
    monkeypatch.setattr(minilm, "build", built.append)
    messages: list[str] = []
    prepare_embedder(embedder(tmp_path / "embedder"), messages.append)
    assert built == [tmp_path / "embedder"]
    assert str(tmp_path / "embedder") in messages[0]


def test_an_unusable_folder_of_the_embedding_model_is_told_with_its_key(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="ECHOLM_EMBEDDING__MODEL_DIR"):
        prepare_embedder(embedder(tmp_path / "file" / "embedder"), lambda message: None)


def test_data_of_an_earlier_version_are_told_of_until_there_are_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert earlier_data(Settings()) == ""
    earlier = tmp_path / "build" / "data"
    earlier.mkdir(parents=True)
    (earlier / "lock").touch()
    assert str(earlier) in earlier_data(Settings())
    assert earlier_data(Settings()).endswith("--data-dir build/data")
    assert earlier_data(Settings(data_dir=tmp_path / "data")) == ""
    DataDir(Settings().data_dir).close()
    assert earlier_data(Settings()) == ""


def test_endpoints_suit_tritonclient() -> None:
    endpoints = Endpoints("127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:3/metrics", Path())
    assert endpoints.http_address == "127.0.0.1:2"


@pytest.mark.parametrize(
    ("bound", "reached"),
    [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("10.1.2.3", "10.1.2.3")],
)
def test_server_bound_to_all_addresses_is_reached_locally(bound: str, reached: str) -> None:
    assert connect_host(bound) == reached


def test_threads_are_limited_for_the_cpu_profile_unless_the_user_set_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    limits = module._thread_limits(ServeOptions(profile="local"))
    assert limits["OMP_NUM_THREADS"] == "3"
    assert limits["OPENBLAS_NUM_THREADS"] == "1"
    assert limits["TOKENIZERS_PARALLELISM"] == "false"
    assert module._thread_limits(ServeOptions(profile="vllm")) == {}


def test_triton_is_found_without_being_imported() -> None:
    installation = find_triton()
    assert installation.server.is_file()
    assert installation.stub.is_file()
    assert "pytriton" not in sys.modules


def image(root: Path, python: str = "{}.{}".format(*sys.version_info)) -> Path:
    """A Triton as images have it."""
    for file, content in {
        "bin/tritonserver": b"#!/bin/sh\n",
        "backends/python/triton_python_backend_stub": f"\0libpython{python}.so.1.0\0".encode(),
    }.items():
        (root / file).parent.mkdir(parents=True)
        (root / file).write_bytes(content)
        (root / file).chmod(0o755)
    return root


def test_the_triton_of_an_image_is_taken_for_gpus_and_served_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from echolm.serving import triton_installation

    monkeypatch.setattr(triton_installation, "SYSTEM_ROOT", image(tmp_path / "triton"))
    assert find_triton().from_wheel
    installation = find_triton(prefer_system=True)
    assert installation.server == tmp_path / "triton" / "bin" / "tritonserver"
    options = TritonOptions((tmp_path,), run_dir=tmp_path / "run", log_file=tmp_path / "log")
    assert (
        TritonServer(options, installation)._backend_directory() == tmp_path / "triton" / "backends"
    )


def test_an_image_for_another_python_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from echolm.serving import triton_installation

    monkeypatch.setattr(
        triton_installation, "SYSTEM_ROOT", image(tmp_path / "triton", python="3.99")
    )
    with pytest.raises(ConfigurationError, match=r"got one for 3\.99; run EchoLM with"):
        find_triton(prefer_system=True)


def test_missing_stub_for_this_python_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from echolm.serving import triton_installation

    monkeypatch.setattr(triton_installation, "_PYTHON", "3.99")
    monkeypatch.setattr(triton_installation, "find_libpython", lambda: tmp_path)
    with pytest.raises(ConfigurationError, match=r"a stub for Python 3\.99, got stubs for .*3\.11"):
        find_triton()


def test_stub_without_run_bit_is_made_runnable_outside_site_packages(tmp_path: Path) -> None:
    installation = TritonInstallation(tmp_path / "wheel", tmp_path, tmp_path)
    installation.stub.parent.mkdir(parents=True)
    installation.stub.write_text("stub")
    installation.stub.chmod(0o644)
    options = TritonOptions((tmp_path,), run_dir=tmp_path / "run", log_file=tmp_path / "log")
    backend = TritonServer(options, installation)._backend_directory() / "python"
    assert (backend / installation.stub.name).stat().st_mode & 0o111
    assert not (installation.stub.stat().st_mode & 0o111)


def test_model_environment_has_no_echolm_or_python_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECHOLM_RETRIEVAL__TOP_N", "5")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    options = TritonOptions(
        (tmp_path,),
        run_dir=tmp_path,
        log_file=tmp_path / "log",
        environment={"ECHOLM_CONFIG": "/run/echolm.toml"},
    )
    environment = TritonServer(options).environment()
    ours = {name: value for name, value in environment.items() if name.startswith("ECHOLM")}
    assert ours == {"ECHOLM_CONFIG": "/run/echolm.toml"}
    assert "PYTHONPATH" not in environment
    assert environment["PATH"].split(":")[0] == str(Path(sys.executable).parent)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--http-port=70000"],
        ["--grpc-port=x"],
        ["--ready-timeout=0"],
        ["--ready-timeout=nan"],
        ["--no-such-option"],
    ],
)
def test_wrong_argument_is_a_usage_error(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["serve", *arguments])
    assert caught.value.code == 2


def test_the_folder_of_a_built_configuration_holds_the_models(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ServeOptions] = []
    monkeypatch.setattr(
        "echolm.serving.serve_forever", lambda settings, options: seen.append(options) or 0
    )
    config = root / "model_repository" / "echolm.toml"
    config.touch()
    for arguments in (["--profile=vllm"], ["--repository-root=/r"]):
        assert cli.main(["serve", f"--config={config}", *arguments]) == 0
    assert [options.repository_root for options in seen] == [config.parent, Path("/r")]
    assert [options.load_s for options in seen] == [1800, 300]
    assert cli.main(["serve", f"--config={config}", "--profile=other"]) == exit_codes.USAGE


def test_wrong_configuration_ends_with_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "echolm.toml"
    file.write_text("[retrieval]\ntop_m = 3\n")
    assert cli.main(["serve", f"--config={file}"]) == exit_codes.USAGE
    assert "retrieval.top_m" in capsys.readouterr().err


def test_options_of_the_command_line_reach_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Settings, ServeOptions]] = []

    def serve(settings: Settings, options: ServeOptions) -> int:
        seen.append((settings, options))
        return 0

    monkeypatch.setattr("echolm.serving.serve_forever", serve)
    arguments = ["--profile=vllm", f"--data-dir={tmp_path}", "--http-port=1", "--grpc-port=2"]
    arguments += ["--metrics-port=0", "--gateway-port=4", "--host=0.0.0.0", "--metrics-host=::"]
    arguments += ["--model-repository=a"]
    arguments += ["--model-repository=b", "--ready-timeout=5", "--verbose"]
    assert cli.main(["serve", *arguments]) == 0
    (settings, options) = seen[0]
    assert settings.data_dir == tmp_path
    assert options == ServeOptions(
        profile="vllm",
        model_repositories=(Path("a"), Path("b")),
        host="0.0.0.0",
        metrics_host="::",
        http_port=1,
        grpc_port=2,
        metrics_port=0,
        gateway_port=4,
        ready_timeout_s=5,
        verbose=True,
    )


def test_triton_wants_the_admin_key_for_all_but_what_clients_need() -> None:
    http, grpc = restriction(RESTRICTED, "k3y")
    protocols = "shared-memory,model-repository,model-config,statistics,trace,logging"
    assert http == f"--http-restricted-api={protocols}:echolm-admin-key=k3y"
    assert grpc == f"--grpc-restricted-protocol={protocols}:echolm-admin-key=k3y"


def test_what_stands_behind_two_dashes_is_triton_s(tmp_path: Path) -> None:
    parsed = build_parser().parse_args(["serve", "--verbose", "--", "--rate-limit=off", "--b"])
    assert (parsed.verbose, parsed.triton) == (True, ["--rate-limit=off", "--b"])
    assert build_parser().parse_args(["serve"]).triton == []
    options = TritonOptions((tmp_path,), tmp_path, tmp_path / "log", extra_args=("--b",))
    assert TritonServer(options, find_triton())._arguments("prefix")[-1] == "--b"
