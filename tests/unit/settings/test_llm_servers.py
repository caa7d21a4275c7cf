"""``llms.url`` and what belongs to it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from echolm.errors import ConfigurationError
from echolm.serving.data_dir import DataDir, resolve
from echolm.settings.loading import load_settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("ECHOLM_"):
            monkeypatch.delenv(name)


def write(folder: Path, *lines: str) -> Path:
    file = folder / "echolm.toml"
    head = ("[[llms]]", 'name = "a"', "cost = 1.0", "takes_examples = true")
    file.write_text("\n".join((*head, *lines)))
    return file


OPENAI = 'contract = "openai"'
HTTPS = (OPENAI, 'url = "https://llm:8443/v1"')


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("triton:8001", "triton:8001"),
        ("grpc://triton:8001", "triton:8001"),
        ("grpcs://triton:8001/", "triton:8001"),
        ("[::1]:8001", "[::1]:8001"),
        ("", ""),
    ],
)
def test_addresses_of_tritons(tmp_path: Path, url: str, address: str) -> None:
    [llm] = load_settings(write(tmp_path, f'url = "{url}"')).llms
    assert llm.grpc_address == address
    assert not llm.takes_messages


@pytest.mark.parametrize(
    "url", ["http://llm/v1", "https://llm.example/v1/", "http://[::1]:8000/deep/v1"]
)
def test_addresses_of_openai_servers(tmp_path: Path, url: str) -> None:
    [llm] = load_settings(write(tmp_path, OPENAI, f'url = "{url}"')).llms
    assert llm.takes_messages
    [llm] = load_settings(
        write(tmp_path, OPENAI, f'url = "{url}"', 'openai_api = "completions"')
    ).llms
    assert not llm.takes_messages


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((OPENAI,), r"url: expected http\(s\)://host:port/v1 for contract 'openai', got none"),
        ((OPENAI, 'url = "llm:8000"'), r"url: expected http\[s\]://host\[:port\]\[/path\], got"),
        ((OPENAI, 'url = "grpc://llm:8000"'), r"url: expected http\[s\]://"),
        ((OPENAI, 'url = "http://llm:80000/v1"'), r"url: expected http\[s\]://"),
        ((OPENAI, 'url = "http:///v1"'), r"url: expected http\[s\]://"),
        ((OPENAI, 'url = "http://llm/v1?a=b"'), r"url: expected http\[s\]://"),
        (('url = "http://triton:8001"',), r"url: expected \[grpc\[s\]://\]host:port, got another"),
        (('url = "triton"',), r"url: expected \[grpc\[s\]://\]host:port"),
        (('url = "grpcs://triton:8001/v1"',), r"url: expected \[grpc\[s\]://\]host:port"),
        ((*HTTPS, 'triton_model = "b"'), r"triton_model: expected none .* as remote_model"),
        ((*HTTPS, "extra_body = {n = 2, stream = true, x = 1}"), "extra_body: .*got n, stream"),
        ((*HTTPS, 'api_key = "k"', 'api_key_file = "k"'), "api_key_file: expected one of them"),
        (('remote_model = "b"',), "remote_model: expected it with contract 'openai' only"),
        (('api_key = "k"',), "api_key: expected it with a url only"),
        (("extra_body = {a = 1}",), "extra_body: expected it with contract 'openai' only"),
        (('url = "t:1"', 'tls_ca = "ca"'), "tls_ca: expected a url that begins with grpcs://"),
        (
            (OPENAI, 'url = "http://llm/v1"', 'tls_ca = "ca"'),
            "tls_ca: expected a url that begins with https://",
        ),
        ((*HTTPS, 'tls_key = "k"'), "tls_certificate and tls_key: expected both or none"),
        ((*HTTPS, 'openai_api = "responses"'), r"llms\.0\.openai_api: .*'chat' or 'completions'"),
        ((*HTTPS, "connect_timeout_s = 0"), r"llms\.0\.connect_timeout_s: .*greater than 0"),
    ],
)
def test_what_does_not_fit_stops_the_start(
    tmp_path: Path, lines: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_settings(write(tmp_path, *lines))


@pytest.mark.parametrize(
    "lines",
    [
        (*HTTPS, 'api_key = "s3cret"', 'tls_key = "k"'),
        (*HTTPS, "api_key = ['s3cret']"),
        (*HTTPS, 'apikey = "s3cret"'),
        (*HTTPS, 'token = "s3cret"'),
        ('api_key = "s3cret"',),
        (OPENAI, 'url = "https://user:s3cret@llm/v1"'),
        (*HTTPS, 'api_key = "s3cret"', "", "[feedback]", 'singing_key = "s3cret"'),
        (*HTTPS, 'api_key = "s3cret"', "", "[routing]", 'default_llm = "b"'),
    ],
)
def test_no_message_shows_a_secret(tmp_path: Path, lines: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError) as error:
        load_settings(write(tmp_path, *lines))
    assert "s3cret" not in str(error.value)
    assert "is not valid:" in str(error.value)


def test_the_models_read_the_same_servers_with_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"api_key_file": "key", "tls_ca": "ca", "tls_certificate": "c", "tls_key": "k"}
    extra = "extra_body = {chat_template_kwargs = {enable_thinking = false}, stop_token_ids = [1]}"
    lines = (*HTTPS, extra, *(f'{name} = "{file}"' for name, file in files.items()))
    settings = load_settings(write(tmp_path, *lines))
    assert {name: getattr(settings.llms[0], name) for name in files} == {
        name: tmp_path / file for name, file in files.items()
    }
    data = DataDir(tmp_path / "data")
    try:
        file = data.write_configuration(resolve(settings, data, "m", "localhost:1"))
        assert load_settings(file).llms == settings.llms
    finally:
        data.close()


def test_a_key_is_not_shown_but_reaches_the_models(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, *HTTPS, 'api_key = "s3cret"'))
    assert "s3cret" not in f"{settings!r} {settings} {settings.model_dump_json()}"
    data = DataDir(tmp_path / "data")
    try:
        file = data.write_configuration(resolve(settings, data, "m", "localhost:1"))
        assert file.stat().st_mode & 0o077 == 0
        [llm] = load_settings(file).llms
        assert llm.api_key.get_secret_value() == "s3cret"
    finally:
        data.close()
