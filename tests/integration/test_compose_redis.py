"""Redis as ``compose.yaml`` starts it is one that the learning log takes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import redis
import yaml
from echolm.errors import ConfigurationError
from echolm.learning.event_log import START
from echolm.settings import Settings
from echolm.wiring.learning import open_event_log
from event_log_contract import FOR_EVER
from redis_server import RedisServer

DOCKER = Path(__file__).resolve().parents[2] / "docker"


def test_redis_of_the_compose_file_keeps_ratings_from_strangers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(DOCKER / "make_secrets.sh", tmp_path)
    subprocess.run([tmp_path / "make_secrets.sh"], check=True, capture_output=True)
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    _, *words = compose["services"]["redis"]["command"]
    words = [word.replace("/run/secrets", str(tmp_path / "secrets")) for word in words]
    options = {k.removeprefix("--"): v for k, v in zip(words[::2], words[1::2], strict=True)}
    server = RedisServer(tmp_path, **options)
    try:
        secret = (tmp_path / "secrets" / "event_log").read_text().strip()
        url = secret.replace("redis:6379", f"127.0.0.1:{server.port}")
        log = open_event_log(Settings(event_log=url))
        log.append("rating", {"score": 1.0})
        [event] = log.read(START, 10)
        assert event.kind == "rating"
        assert log.save_snapshot("s", event.position, b"")
        assert [snapshot.name for snapshot in log.snapshots()] == ["s"]
        assert log.trim(FOR_EVER, [event.position]) == 1
        log.drop_snapshot("s")
        assert log.lease("work", "a", 1.0)
        log.close()
        assert not caplog.records, "the log knows that nothing is lost"
        # The health check of the compose file asks without a password.
        with redis.Redis(port=server.port) as stranger:
            assert stranger.ping()
            with pytest.raises(redis.exceptions.NoPermissionError):
                stranger.xrange("echolm:events")
        wrong = Settings(event_log=server.url.replace("redis://", "redis://echolm:wrong@"))
        with pytest.raises(ConfigurationError, match="correct user and password"):
            open_event_log(wrong)
    finally:
        server.stop()
