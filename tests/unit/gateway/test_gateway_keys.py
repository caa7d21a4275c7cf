"""API keys: who may call, for whom, how much; and the file that holds them."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest
from echolm.cli.main import main
from echolm.errors import ConfigurationError, UnavailableError
from echolm.gateway.app import open_gateway
from echolm.gateway.backend import Final
from echolm.gateway.keys import KeyFile, Keyring, digest, is_loopback
from echolm.gateway.metrics import GatewayMetrics
from echolm.serving.preflight import check_gateway
from echolm.settings import GatewaySettings, Settings
from echolm.testing.gateway import FakeBackend, chat
from served_gateway import Served

USER: Any = [{"role": "user", "content": "How do I find files?"}]
PATH = "/v1/chat/completions"


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


async def post(served: Served, key: str, **fields: Any) -> Any:
    async with served.http(key) as client:
        return await client.post(PATH, json=chat(**fields))


async def eventually_refused(served: Served, key: str) -> Any:
    while (response := await post(served, key)).status_code == 200:
        await asyncio.sleep(0.1)
    return response


async def test_with_keys_callers_need_one(serve: Callable[..., Any], tmp_path: Path) -> None:
    _, secret = KeyFile(tmp_path / "keys.json").add(tenant="acme")
    served = await serve()
    for wrong in ("", "none", secret[:-1], secret + "x", "sk-echolm-" + "a" * 10_000):
        response = await post(served, wrong)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
    with pytest.raises(openai.AuthenticationError):
        await served.openai("sk-other").models.list()
    async with served.http() as client:
        assert (await client.get("/metrics")).status_code == 401
        assert (await client.get("/health")).status_code == 200
    assert served.backend.asked == []
    await served.openai(secret).chat.completions.create(model="echolm", messages=USER)
    assert served.backend.asked[0]["tenant"] == "acme"


async def test_a_key_stands_for_its_tenant(serve: Callable[..., Any], tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    _, user = file.add(tenant="acme")
    _, admin = file.add(role="admin")
    served = await serve()
    refused = await post(served, user, tenant="other")
    assert (refused.status_code, refused.json()["error"]["param"]) == (403, "tenant")
    assert (await post(served, user, tenant="acme")).status_code == 200
    answer = (await post(served, admin, tenant="other")).json()
    assert [inputs["tenant"] for inputs in served.backend.asked] == ["acme", "other"]
    async with served.http(user) as client:
        missing = await client.post("/v1/feedback", json={"id": answer["id"], "score": 1})
        assert missing.status_code == 404
        assert (await client.get("/metrics")).status_code == 403
        await client.post("/v1/feedback", json={"feedback_token": "t", "score": 1})
    async with served.http(admin) as client:
        assert (await client.get("/metrics")).status_code == 200
        rated = await client.post("/v1/feedback", json={"id": answer["id"], "score": 0})
        assert rated.status_code == 200
    assert served.backend.rated == [
        {"feedback_token": "t", "score": 1, "tenant": "acme"},
        {"feedback_token": "signed", "score": 0},
    ]


async def test_a_revoked_key_is_refused_without_a_restart(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    file = KeyFile(tmp_path / "keys.json")
    key, secret = file.add()
    served = await serve()
    assert (await post(served, secret)).status_code == 200
    file.revoke(key.id)
    response = await eventually_refused(served, secret)
    assert response.status_code == 401
    assert "revoked" in response.json()["error"]["message"]
    # The last key's end does not open the gateway.
    assert (await post(served, "")).status_code == 401


async def test_the_first_key_closes_an_open_gateway(served: Served) -> None:
    assert (await post(served, "anything")).status_code == 200
    served.keys.add()
    assert (await eventually_refused(served, "anything")).status_code == 401


async def test_an_expired_key_is_refused(serve: Callable[..., Any], tmp_path: Path) -> None:
    past = datetime.now(timezone.utc) - timedelta(seconds=1)
    _, secret = KeyFile(tmp_path / "keys.json").add(expires=past)
    served = await serve()
    response = await post(served, secret)
    assert response.status_code == 401
    assert "expired" in response.json()["error"]["message"]


async def test_requests_a_minute(serve: Callable[..., Any], tmp_path: Path) -> None:
    clock = Clock()
    file = KeyFile(tmp_path / "keys.json")
    _, secret = file.add(requests_per_minute=3)
    _, other = file.add()
    served = await serve(clock=clock)
    left = []
    for _ in range(3):
        response = await post(served, secret)
        left.append(response.headers["x-ratelimit-remaining-requests"])
    assert left == ["2", "1", "0"]
    response = await post(served, secret)
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "rate_limit_exceeded"
    assert response.headers["retry-after"] == "20"
    assert (await post(served, other)).status_code == 200
    clock.now += 20.0
    assert (await post(served, secret)).status_code == 200
    with pytest.raises(openai.RateLimitError):
        await served.openai(secret).chat.completions.create(model="echolm", messages=USER)


async def test_tokens_a_minute_count_what_was_used(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    _, secret = KeyFile(tmp_path / "keys.json").add(tokens_per_minute=1_000)
    served = await serve(clock=Clock())
    taken = await post(served, secret, max_tokens=800)
    reserved = 1_000 - int(taken.headers["x-ratelimit-remaining-tokens"])
    assert reserved > 800
    # It took 15, and the rest comes back.
    while (again := await post(served, secret, max_tokens=800)).status_code != 200:
        await asyncio.sleep(0.01)
    assert int(again.headers["x-ratelimit-remaining-tokens"]) == 1_000 - 15 - reserved
    never = await post(served, secret, max_tokens=1_000)
    assert never.status_code == 429
    assert "in one request" in never.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("text", "calls", "written"), [("x" * 400, b"", 100), ("", [{"id": "x" * 391}], 100)]
)
async def test_tokens_that_an_llm_does_not_count_are_estimated(
    serve: Callable[..., Any], tmp_path: Path, stream: bool, text: str, calls: Any, written: int
) -> None:
    _, secret = KeyFile(tmp_path / "keys.json").add(tokens_per_minute=1_000)
    final = Final(text, "small_llm", tool_calls=orjson.dumps(calls) if calls else b"")
    served = await serve(FakeBackend(final), clock=Clock())
    taken = await post(served, secret, max_tokens=800, stream=stream)
    reserved = 1_000 - int(taken.headers["x-ratelimit-remaining-tokens"])
    while (again := await post(served, secret, max_tokens=800)).status_code != 200:
        await asyncio.sleep(0.01)
    used = 1_000 - reserved - int(again.headers["x-ratelimit-remaining-tokens"])
    assert 0 <= used - (reserved - 800) - written < 5  # deltas have an index, too


async def test_an_answer_takes_at_most_the_tokens_that_it_may(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    _, secret = KeyFile(tmp_path / "keys.json").add(tokens_per_minute=1_000)
    served = await serve(FakeBackend(Final("x" * 4_000, "small_llm")), clock=Clock())
    for _ in range(3):
        assert (await post(served, secret, max_tokens=300)).status_code == 200
        await asyncio.sleep(0.05)


async def test_what_is_read_beside_the_messages_is_counted(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    _, secret = KeyFile(tmp_path / "keys.json").add(tokens_per_minute=100_000)
    served = await serve(clock=Clock())
    function = {"name": "f", "description": "x" * 4_000}
    schema = {"name": "a", "schema": {"description": "x" * 8_000}}
    plain = await post(served, secret)
    left = int(plain.headers["x-ratelimit-remaining-tokens"])
    for fields, least in (
        ({"tools": [{"type": "function", "function": function}]}, 1_000),
        ({"response_format": {"type": "json_schema", "json_schema": schema}}, 2_000),
    ):
        _, secret = KeyFile(tmp_path / "keys.json").add(tokens_per_minute=100_000)
        while (response := await post(served, secret, **fields)).status_code == 401:
            await asyncio.sleep(0.01)
        assert least <= left - int(response.headers["x-ratelimit-remaining-tokens"]) < least + 100


async def test_a_failed_request_costs_no_tokens(serve: Callable[..., Any], tmp_path: Path) -> None:
    _, secret = KeyFile(tmp_path / "keys.json").add(tokens_per_minute=1_000)
    served = await serve(clock=Clock())
    served.backend.fails = UnavailableError("down")
    for stream in (False, True):
        while (response := await post(served, secret, max_tokens=800, stream=stream)) and (
            response.status_code == 429
        ):
            await asyncio.sleep(0.01)
        assert response.status_code == 503


async def test_the_budget_of_a_day(serve: Callable[..., Any], tmp_path: Path) -> None:
    clock = Clock()
    _, secret = KeyFile(tmp_path / "keys.json").add(tokens_per_day=60)
    served = await serve(clock=clock)
    statuses = []
    for _ in range(6):
        statuses.append((await post(served, secret, max_tokens=4)).status_code)
        await asyncio.sleep(0.05)
    assert statuses[0] == 200 and statuses[-1] == 429
    response = await post(served, secret, max_tokens=4)
    assert response.json()["error"]["code"] == "insufficient_quota"
    midnight = 86_400 - clock.now % 86_400
    assert float(response.headers["retry-after"]) == pytest.approx(midnight, abs=1)
    clock.now += midnight
    assert (await post(served, secret, max_tokens=4)).status_code == 200


def test_a_file_that_others_may_read_stays_so(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    file.add()
    file.path.chmod(0o644)
    key, _ = file.add()
    file.revoke(key.id)
    assert file.path.stat().st_mode & 0o777 == 0o644


def test_the_file_has_no_secret_and_is_private(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    key, secret = file.add(name="search team")
    assert len(secret) > 50 and secret.startswith("sk-echolm-")
    assert secret[10:] not in file.path.read_text()
    assert key.hash == digest(secret)
    for path in (file.path, file.path.with_name("keys.json.lock")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert file.read() == (key,)


@pytest.mark.parametrize("text", ["", "[]", '{"keys": [{"id": "a"}]}', '{"other": 1}', "\xff"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text, "latin-1")
    with pytest.raises(ConfigurationError, match=r"keys\.json"):
        KeyFile(path).read()


def test_a_file_that_breaks_keeps_its_keys(tmp_path: Path, monkeypatch: Any) -> None:
    file = KeyFile(tmp_path / "keys.json")
    key, secret = file.add()
    monkeypatch.setattr("echolm.gateway.keys._CHECK_S", 0.0)
    ring = Keyring(file)
    file.path.write_text("{")
    assert ring.check(secret) == key
    file.path.unlink()
    assert ring.check(secret) == key
    assert ring.is_needed


async def test_required_keys_never_open_the_gateway(
    serve: Callable[..., Any], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("echolm.gateway.keys._CHECK_S", 0.0)
    path = tmp_path / "k.json"
    missing = Settings(data_dir=tmp_path, gateway=GatewaySettings(port=0, keys_path=path))
    with pytest.raises(ConfigurationError, match="keys are required"):
        check_gateway(missing)
    with pytest.raises(ConfigurationError, match="keys are required"):
        Keyring(KeyFile(path), required=True)
    path.write_text('{"keys": []}')
    served = await serve(keys_path=path, open=True)
    assert (await post(served, "")).status_code == 401
    path.unlink()
    assert (await post(served, "")).status_code == 401


async def test_keys_that_were_there_keep_the_gateway_closed(
    serve: Callable[..., Any], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("echolm.gateway.keys._CHECK_S", 0.0)
    file = KeyFile(tmp_path / "keys.json")
    file.add()
    served = await serve()
    file.path.write_text('{"keys": []}')
    assert (await post(served, "")).status_code == 401


async def test_what_the_gateway_remembers_is_private(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "new")
    made = open_gateway(settings, FakeBackend(), GatewayMetrics(None))
    files = {file.name: stat.S_IMODE(file.stat().st_mode) for file in settings.data_dir.iterdir()}
    names = ("gateway.sqlite", "gateway.sqlite-shm", "gateway.sqlite-wal")
    assert files == dict.fromkeys(names, 0o600)
    await made.close()


async def test_failed_embeddings_cost_no_tokens(serve: Callable[..., Any], tmp_path: Path) -> None:
    _, secret = KeyFile(tmp_path / "keys.json").add(tokens_per_minute=1_000)
    served = await serve(clock=Clock())
    body = {"model": "text_embedding", "input": "x" * 3_000, "dimensions": 2}
    async with served.http(secret) as client:
        for _ in range(3):
            while (response := await client.post("/v1/embeddings", json=body)).status_code == 429:
                await asyncio.sleep(0.01)
            assert response.status_code == 400


async def test_an_unexpected_failure_costs_no_tokens(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    _, secret = KeyFile(tmp_path / "keys.json").add(tokens_per_minute=1_000)
    served = await serve(clock=Clock())
    served.backend.fails = RuntimeError("a bug")
    for _ in range(3):
        while (response := await post(served, secret, max_tokens=800)).status_code == 429:
            await asyncio.sleep(0.01)
        assert response.status_code == 500


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = ["--data-dir", str(tmp_path)]
    limits = ["--requests-per-minute", "5", "--tokens-per-day", "100", "--expires-in", "3"]
    assert main(["keys", "add", "--name", "team", "--tenant", "acme", *limits, *at]) == 0
    secret = capsys.readouterr().out.strip()
    (key,) = KeyFile(tmp_path / "keys.json").read()
    assert key.hash == digest(secret)
    assert (key.tenant, key.requests_per_minute, key.tokens_per_day) == ("acme", 5, 100)
    assert main(["keys", "list", *at]) == 0
    listed = capsys.readouterr().out
    assert key.id in listed and "until" in listed and secret not in listed
    assert main(["keys", "revoke", key.id, *at]) == 0
    assert main(["keys", "list", *at]) == 0
    assert "revoked" in capsys.readouterr().out
    assert main(["keys", "revoke", "k_other", *at]) == 2
    with pytest.raises(SystemExit):
        main(["keys", "add", "--requests-per-minute", "0", *at])


def test_keys_lie_where_the_configuration_says(tmp_path: Path) -> None:
    path = tmp_path / "elsewhere" / "k.json"
    config = tmp_path / "echolm.toml"
    config.write_text('[gateway]\nkeys_path = "elsewhere/k.json"\n')
    assert main(["keys", "add", "--config", str(config)]) == 0
    assert len(json.loads(path.read_text())["keys"]) == 1


@pytest.mark.parametrize(
    ("values", "has_key", "good"),
    [
        ({}, False, True),
        ({"host": "::1"}, False, True),
        ({"host": "0.0.0.0"}, False, False),
        ({"host": "0.0.0.0", "open": True}, False, True),
        ({"host": "0.0.0.0"}, True, True),
        ({"tls_certificate": "/nowhere", "tls_key": "/nowhere"}, False, False),
    ],
)
def test_nobody_calls_from_elsewhere_without_keys(
    tmp_path: Path, values: Any, has_key: bool, good: bool
) -> None:
    if has_key:
        KeyFile(tmp_path / "keys.json").add()
    settings = Settings(data_dir=tmp_path, gateway=GatewaySettings(port=0, **values))
    if good:
        check_gateway(settings)
    else:
        with pytest.raises(ConfigurationError, match=r"gateway\."):
            check_gateway(settings)


def test_loopback_addresses() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"))
