from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from echolm.cli.build import DEFAULT_OUTPUT
from echolm.errors import ConfigurationError
from echolm.gateway.keys import KeyFile
from echolm.serving import data_dir as module
from echolm.serving.data_dir import DataDir, resolve
from echolm.settings import (
    EmbeddingSettings,
    FeedbackSettings,
    GatewaySettings,
    LLMSettings,
    RoutingSettings,
    Settings,
    TritonSettings,
)
from echolm.settings.loading import load_settings
from pydantic import SecretStr


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    return DataDir(tmp_path / "data")


def test_directory_in_use_is_refused_with_the_process(tmp_path: Path, data: DataDir) -> None:
    with pytest.raises(ConfigurationError, match=r"in use by a running server \(process \d+\)"):
        DataDir(tmp_path / "data")
    data.close()
    DataDir(tmp_path / "data").close()


def test_directory_of_a_dead_server_is_waited_for(tmp_path: Path, data: DataDir) -> None:
    # A guard that still clears up has inherited the lock; its server is gone.
    guard = subprocess.Popen(["sleep", "0.5"], pass_fds=[data.lock_fd])
    (tmp_path / "data" / "lock").write_text("999999999\n")
    data.close()
    DataDir(tmp_path / "data").close()
    assert guard.wait() == 0


def test_directory_whose_dead_server_left_something_for_ever_is_refused(
    tmp_path: Path, data: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SHUTDOWN_S", 0.2)
    (tmp_path / "data" / "lock").write_text("999999999\n")
    with pytest.raises(ConfigurationError, match="in use"):
        DataDir(tmp_path / "data")


def test_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="--data-dir"):
        DataDir(tmp_path / "file" / "data")


def test_signing_key_is_made_once_and_private(data: DataDir) -> None:
    key = data.signing_key().get_secret_value()
    assert len(key) >= 40
    assert data.signing_key().get_secret_value() == key
    assert (data.path / "signing.key").stat().st_mode & 0o777 == 0o600


def test_empty_signing_key_is_refused(data: DataDir) -> None:
    (data.path / "signing.key").touch()
    with pytest.raises(ConfigurationError, match="empty file"):
        data.signing_key()


def test_configured_signing_key_is_kept(data: DataDir) -> None:
    settings = Settings(feedback=FeedbackSettings(signing_key=SecretStr("ours")))
    assert (
        resolve(settings, data, "", "localhost:1").feedback.signing_key.get_secret_value() == "ours"
    )
    assert not (data.path / "signing.key").exists()


def test_written_configuration_reads_back_as_the_resolved_settings(
    data: DataDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings(
        data_dir=Path("data"),
        embedding=EmbeddingSettings(model_dir=Path("embedder")),
        llms=(
            LLMSettings(name="a", cost=1, takes_examples=True, tokenizer=Path("a/tokenizer.json")),
            LLMSettings(name="b-1.5:latest", cost=2, takes_examples=False),
        ),
    )
    resolved = resolve(settings, data, "unix:/tmp/milvus.sock", "localhost:1")
    file = data.write_configuration(resolved)
    assert file.stat().st_mode & 0o777 == 0o600
    # From anywhere: every path is absolute.
    monkeypatch.chdir("/")
    read = load_settings(file)
    assert read == resolved
    assert read.embedding.model_dir == tmp_path / "embedder"
    assert read.llms[0].tokenizer == tmp_path / "a" / "tokenizer.json"
    assert read.llms[1].tokenizer is None
    assert read.event_log_path == tmp_path / "data" / "events.sqlite"
    assert read.retrieval.milvus_uri == "unix:/tmp/milvus.sock"


def test_the_address_of_a_redis_server_stays_as_it_is(data: DataDir) -> None:
    url = "redis://user:secret@redis:6379/1"
    file = data.write_configuration(resolve(Settings(event_log=url), data, "", "localhost:1"))
    assert load_settings(file).event_log == url


def test_lock_does_not_reach_programs_that_are_not_given_it(data: DataDir) -> None:
    program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(5)"])
    data.close()
    DataDir(data.path).close()
    program.kill()
    program.wait()


def test_links_to_secrets_are_kept(data: DataDir, tmp_path: Path) -> None:
    # As Kubernetes mounts secrets: `..data` leads to another folder after each change.
    (tmp_path / "first").mkdir()
    (tmp_path / "..data").symlink_to("first")
    names = ("keys", "cert", "key", "llm")
    for name in names:
        (tmp_path / "first" / name).write_text('{"keys": []}')
        (tmp_path / name).symlink_to(f"..data/{name}")
    config = tmp_path / "echolm.toml"
    config.write_text(
        '[gateway]\nkeys_path = "keys"\ntls_certificate = "cert"\ntls_key = "key"\n'
        '[[llms]]\nname = "a"\ncost = 1\ntakes_examples = true\nurl = "http://h/v1"\n'
        'contract = "openai"\napi_key_file = "llm"\n'
    )
    resolved = resolve(load_settings(config), data, "", "localhost:1")
    gateway = resolved.gateway
    found = (gateway.keys_path, gateway.tls_certificate, gateway.tls_key)
    assert (*found, resolved.llms[0].api_key_file) == tuple(tmp_path / name for name in names)


def test_the_resolved_configuration_says_whether_keys_are_required(
    data: DataDir, tmp_path: Path
) -> None:
    def required(settings: Settings) -> bool:
        file = data.write_configuration(resolve(settings, data, "", "localhost:1"))
        return load_settings(file).keys_are_required

    settings = Settings(data_dir=data.path)
    assert not required(settings)
    assert required(Settings(gateway=GatewaySettings(keys_path=tmp_path / "k.json")))
    # A server that starts with keys does not open because their file goes.
    (data.path / "keys.json").write_text('{"keys": []}')
    assert not required(settings)
    KeyFile(data.path / "keys.json").add()
    assert required(settings)


def modes(path: Path) -> dict[str, int]:
    found = {str(file.relative_to(path)): file.lstat().st_mode & 0o777 for file in path.rglob("*")}
    return {**found, ".": path.stat().st_mode & 0o777}


def make_open(path: Path, *names: str) -> None:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("")
        (path / name).chmod(0o644)
    for folder in (path, *(file for file in path.rglob("*") if file.is_dir())):
        folder.chmod(0o755)


def test_what_an_earlier_version_left_open_to_others_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "data"
    make_open(path, "lock", "milvus.db", "events.sqlite-wal", "logs/triton.log", "run/shm-prefix")
    (path / "lock").write_text("999999999\n")
    outside = tmp_path / "outside"
    outside.write_text("")
    outside.chmod(0o644)
    (path / "keys.json").symlink_to(outside)
    DataDir(path).close()
    assert {mode for name, mode in modes(path).items() if name != "keys.json"} == {0o700, 0o600}
    assert outside.stat().st_mode & 0o777 == 0o644


def test_what_is_not_echolms_keeps_its_rights(tmp_path: Path) -> None:
    path = tmp_path / "data"
    make_open(path, "lock", "milvus.db", "vllm/echolm.toml", ".cache/embedder/model.onnx")
    before = modes(path)
    DataDir(path).close()
    after = modes(path)
    changed = {name for name, mode in before.items() if after[name] != mode}
    assert changed == {"lock", "milvus.db"}


@pytest.mark.parametrize("name", ["thesis.tex", "lock"])
def test_a_folder_of_something_else_is_refused_as_it_is(tmp_path: Path, name: str) -> None:
    make_open(tmp_path, name, "logs/mine.log", "src/a.c")
    (tmp_path / name).write_text("of another program\n")
    before = modes(tmp_path)
    with pytest.raises(ConfigurationError, match=r"with other files .*--data-dir"):
        DataDir(tmp_path)
    assert modes(tmp_path) == before


def test_an_empty_volume_is_taken_as_it_is(tmp_path: Path) -> None:
    make_open(tmp_path, "keys.json", "lost+found/a", ".cache/b")
    before = modes(tmp_path)
    DataDir(tmp_path).close()
    assert {name: modes(tmp_path)[name] for name in before} == before


def test_a_built_model_repository_is_outside_of_the_data_directory() -> None:
    assert not Path(DEFAULT_OUTPUT).expanduser().is_relative_to(Settings().data_dir)


def test_a_directory_in_use_is_not_touched(data: DataDir) -> None:
    make_open(data.path, "events.sqlite")
    before = modes(data.path)
    with pytest.raises(ConfigurationError, match="in use"):
        DataDir(data.path)
    assert modes(data.path) == before


def test_an_admin_key_is_made_once_unless_it_is_given_or_nothing_is_restricted(
    data: DataDir,
) -> None:
    def key(**triton: Any) -> str:
        settings = Settings(triton=TritonSettings(**triton))
        resolved = resolve(settings, data, "", "localhost:1")
        return resolved.triton.admin_key.get_secret_value()

    assert key(admin_key=SecretStr("given" * 4)) == "given" * 4
    assert key(restrict=False) == ""
    assert not (data.path / "admin.key").exists()
    assert len(key()) >= 40
    assert key() == key()
    assert (data.path / "admin.key").stat().st_mode & 0o777 == 0o600


def test_in_a_folder_the_load_table_has_a_name_that_nobody_can_guess(
    data: DataDir, tmp_path: Path
) -> None:
    def table(path: Path) -> Path:
        settings = Settings(routing=RoutingSettings(load_table=str(path)))
        return resolve(settings, data, "", "localhost:1").load_table_path

    names = {table(tmp_path).name for _ in range(2)}
    assert len(names) == 2 and all(len(name) > 40 for name in names)
    assert table(tmp_path).parent == tmp_path
    assert table(tmp_path / "load.table") == tmp_path / "load.table"
