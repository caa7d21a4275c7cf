from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest
from echolm.engines.openvino import MODEL_FILES
from echolm.errors import ConfigurationError
from echolm.serving import preflight
from echolm.serving.triton_installation import find_libpython, libpython_name
from echolm.settings import Settings


def add_model(repository: Path, name: str, config: str = 'backend: "python"') -> Path:
    directory = repository / name
    (directory / "1").mkdir(parents=True)
    (directory / "config.pbtxt").write_text(config)
    (directory / "1" / "model.py").touch()
    return directory


def test_this_host_passes() -> None:
    preflight.check_host()


@pytest.mark.parametrize("version", ["2.34", "2.9", "", "1.99"])
def test_old_or_other_c_library_is_refused(version: str) -> None:
    with pytest.raises(ConfigurationError, match=r"expected glibc 2\.35 or newer"):
        preflight.check_glibc(version)


@pytest.mark.parametrize("version", ["2.35", "2.40", "3.0"])
def test_new_c_library_passes(version: str) -> None:
    preflight.check_glibc(version)


@pytest.mark.parametrize("version", [(3, 9), (3, 13)])
def test_other_python_is_refused(version: tuple[int, int]) -> None:
    with pytest.raises(ConfigurationError, match=r"expected 3\.10, 3\.11, 3\.12, got 3\."):
        preflight.check_python(version)


@pytest.mark.parametrize(("system", "machine"), [("Darwin", "arm64"), ("Linux", "aarch64")])
def test_other_machine_is_refused(system: str, machine: str) -> None:
    with pytest.raises(ConfigurationError, match=f"got {system} {machine}"):
        preflight.check_machine(system, machine)


def test_numpy_2_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigurationError, match=r'got 2\.1\.0.*pip install "numpy<2"'):
        preflight.check_numpy("2.1.0")


def test_missing_libpython_is_refused_with_file_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        find_libpython([tmp_path, tmp_path / "none"])
    message = str(caught.value)
    assert libpython_name() in message
    assert str(tmp_path) in message
    assert "apt-get install libpython3." in message
    assert "--enable-shared" in message


def test_libpython_is_taken_from_the_first_directory_that_has_it(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for directory in (first, second):
        directory.mkdir()
        (directory / libpython_name()).touch()
    assert find_libpython([tmp_path, first, second]) == first


def test_python3_without_the_package_is_refused(tmp_path: Path) -> None:
    program = tmp_path / "python3"
    version = "{}.{}".format(*sys.version_info)
    program.write_text(f"#!/bin/sh\necho {version}\necho 'No module named echolm' >&2\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(ConfigurationError, match=r"No module named echolm.*pip install -e \."):
        preflight.check_stub_python({"PATH": f"{tmp_path}:/bin:/usr/bin"})


def test_python3_of_another_version_is_refused(tmp_path: Path) -> None:
    program = tmp_path / "python3"
    program.write_text("#!/bin/sh\necho 3.7\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(ConfigurationError, match=r"got 3\.7"):
        preflight.check_stub_python({"PATH": f"{tmp_path}:/bin:/usr/bin"})


def test_no_python3_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected one on the path"):
        preflight.check_stub_python({"PATH": str(tmp_path)})


def test_taken_port_names_port_and_option() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"port {port} .*--metrics-port"):
            preflight.check_ports("127.0.0.1", {"--metrics-port": port})


def test_equal_ports_are_refused() -> None:
    (port,) = preflight.free_ports("127.0.0.1", 1)
    with pytest.raises(ConfigurationError, match="--http-port and --grpc-port to differ"):
        preflight.check_ports("127.0.0.1", {"--http-port": port, "--grpc-port": port})


def test_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="--host"):
        preflight.check_ports("192.0.2.1", {"--http-port": 8000})


def test_a_free_port_is_none_that_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    # The system may give the ports that were just drawn for another part, and not bound yet.
    monkeypatch.setattr(preflight, "free_ports", lambda host, count: [*range(7, 7 + count)])
    assert preflight.free_port("127.0.0.1", {7, 8}) == 9
    assert preflight.free_port("127.0.0.1", set()) == 7


def test_free_ports_differ() -> None:
    ports = preflight.free_ports("127.0.0.1", 20)
    assert len(set(ports)) == 20
    preflight.check_ports("127.0.0.1", {f"--{port}": port for port in ports})


def test_models_are_found_in_all_repositories(tmp_path: Path) -> None:
    first = add_model(tmp_path / "core", "one")
    second = add_model(tmp_path / "local", "two")
    assert preflight.models_in([tmp_path / "core", tmp_path / "local"]) == {
        "one": first,
        "two": second,
    }


def test_model_in_two_repositories_is_refused(tmp_path: Path) -> None:
    add_model(tmp_path / "core", "same")
    add_model(tmp_path / "local", "same")
    with pytest.raises(ConfigurationError, match="model same: expected it in one"):
        preflight.models_in([tmp_path / "core", tmp_path / "local"])


@pytest.mark.parametrize("exists", [True, False])
def test_repository_without_models_is_refused(tmp_path: Path, exists: bool) -> None:
    if exists:
        (tmp_path / "core").mkdir()
    with pytest.raises(ConfigurationError, match="--repository-root"):
        preflight.models_in([tmp_path / "core"])


def test_configured_llm_without_a_model_is_refused(tmp_path: Path) -> None:
    add_model(tmp_path, "small_llm")
    with pytest.raises(ConfigurationError, match=r"LLM large_llm.*got only small_llm"):
        preflight.check_models(preflight.models_in([tmp_path]), Settings())


def test_an_llm_elsewhere_needs_no_model_here(tmp_path: Path) -> None:
    add_model(tmp_path, "small_llm")
    here, there = Settings().llms
    there = there.model_copy(update={"url": "triton:8001"})
    preflight.check_models(preflight.models_in([tmp_path]), Settings(llms=(here, there)))


OPENVINO = 'backend: "python"\nparameters [{ key: "engine" value { string_value: "openvino" } }]'


@pytest.mark.parametrize("missing", ["openvino_model.xml", "openvino_tokenizer.bin"])
def test_llm_without_a_weights_file_is_refused_by_file(tmp_path: Path, missing: str) -> None:
    for name in ("small_llm", "large_llm"):
        weights = add_model(tmp_path, name, OPENVINO) / "1" / "openvino"
        weights.mkdir()
        for file in MODEL_FILES:
            (weights / file).write_text("x")
    models = preflight.models_in([tmp_path])
    preflight.check_models(models, Settings())

    (models["large_llm"] / "1" / "openvino" / missing).write_text("")
    with pytest.raises(
        ConfigurationError, match=rf"model large_llm: .*large_llm/1/openvino/{missing}"
    ):
        preflight.check_models(models, Settings())
    (models["large_llm"] / "1" / "openvino" / missing).unlink()
    with pytest.raises(ConfigurationError, match=rf"large_llm/1/openvino/{missing}"):
        preflight.check_models(models, Settings())


def test_llm_without_its_weights_folder_is_refused(tmp_path: Path) -> None:
    for name in ("small_llm", "large_llm"):
        add_model(tmp_path, name, OPENVINO)
    with pytest.raises(ConfigurationError, match=r"1/openvino/openvino_model\.xml"):
        preflight.check_models(preflight.models_in([tmp_path]), Settings())


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ('{ key: "engine" value { string_value: "lama" } }', "engine: expected one of dummy"),
        (
            '{ key: "engine" value { string_value: "openvino" } }, '
            '{ key: "max_seqs" value { string_value: "8" } }',
            "expected options among .*, got 'max_seqs'",
        ),
        (
            '{ key: "engine" value { string_value: "vllm" } }',
            "expected a Hugging Face checkpoint in .*large_llm/1/vllm",
        ),
    ],
)
def test_an_engine_that_cannot_start_is_refused(
    tmp_path: Path, parameter: str, message: str
) -> None:
    for name in ("small_llm", "large_llm"):
        add_model(tmp_path, name, f'backend: "python"\nparameters [{parameter}]')
    with pytest.raises(ConfigurationError, match=f"model .*_llm: .*{message}".replace("large", "")):
        preflight.check_models(preflight.models_in([tmp_path]), Settings())


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    add_model(tmp_path, "small_llm")
    (tmp_path / ".hidden").mkdir()
    preflight.models_in([tmp_path])
    (tmp_path / "large_llm" / "1").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match=r"model large_llm: expected .*config\.pbtxt"):
        preflight.models_in([tmp_path])


@pytest.mark.parametrize("missing", ["1/model.py", "1"])
def test_a_model_without_its_program_is_refused(tmp_path: Path, missing: str) -> None:
    for name in ("small_llm", "large_llm"):
        add_model(tmp_path, name)
    (tmp_path / "large_llm" / "1" / "model.py").unlink()
    if missing == "1":
        (tmp_path / "large_llm" / "1").rmdir()
    with pytest.raises(
        ConfigurationError, match=f"model large_llm: expected .*large_llm/{missing}"
    ):
        preflight.check_models(preflight.models_in([tmp_path]), Settings())


def test_a_chat_template_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for name in ("small_llm", "large_llm", "router"):
        add_model(tmp_path, name)
    small, large = Settings().llms
    llms = (small, large.model_copy(update={"chat_template": "chatlm"}))
    with pytest.raises(ConfigurationError, match=r"LLM large_llm: .* got 'chatlm'"):
        preflight.check_models(preflight.models_in([tmp_path]), Settings(llms=llms))


def test_a_model_that_another_version_built_is_refused(tmp_path: Path) -> None:
    for name in ("small_llm", "large_llm"):
        add_model(tmp_path, name)
    add_model(tmp_path, "tokenizer", 'backend: "python"\ninput [{ name: "text" }]')
    with pytest.raises(
        ConfigurationError,
        match=r"tokenizer: expected the inputs messages, text_input .*got text; .*--force",
    ):
        preflight.check_models(preflight.models_in([tmp_path]), Settings())


def test_instances_of_python_models_are_counted(tmp_path: Path) -> None:
    add_model(tmp_path, "one")
    add_model(tmp_path, "three", 'backend: "python"\ninstance_group [{ count: 3 kind: KIND_CPU }]')
    add_model(tmp_path, "ensemble", 'platform: "ensemble"')
    assert preflight.python_instances(preflight.models_in([tmp_path])) == 4


def test_small_shared_memory_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigurationError, match=r"expected 48 MiB free .* got 16 MiB.*--shm-size"):
        preflight.check_shared_memory(10, 4 << 20, available=16 << 20)
    preflight.check_shared_memory(10, 4 << 20, available=64 << 20)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may listen on every port")
def test_privileged_port_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="--http-port"):
        preflight.check_ports("127.0.0.1", {"--http-port": 80})


def test_a_model_whose_backend_triton_lacks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "backends" / "python").mkdir(parents=True)
    models = {"a": add_model(tmp_path, "a"), "b": add_model(tmp_path, "b", 'platform: "ensemble"')}
    preflight.check_backends(models, tmp_path / "backends")
    models["c"] = add_model(tmp_path, "c", 'backend: "onnxruntime"')
    with pytest.raises(ConfigurationError, match="model c: expected Triton's backend onnxruntime"):
        preflight.check_backends(models, tmp_path / "backends")


def test_a_configuration_that_cannot_be_read_is_refused_by_file(tmp_path: Path) -> None:
    models = {"one": add_model(tmp_path, "one", "backend = python")}
    with pytest.raises(ConfigurationError, match=r"model one: expected .*config\.pbtxt, got: "):
        preflight.python_instances(models)


def test_fields_of_a_newer_triton_are_passed_over(tmp_path: Path) -> None:
    config = 'backend: "python"\nsomething_new { count: 5 }\ninstance_group [{ count: 2 }]'
    assert preflight.python_instances({"one": add_model(tmp_path, "one", config)}) == 2
