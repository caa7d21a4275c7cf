"""``echolm estimate`` over a learning log in Redis."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from echolm.learning.redis_log import RedisEventLog
from echolm.settings import LearningSettings
from redis_server import RedisServer
from solicited_log import TRUTH, fill


def estimate(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "echolm", "estimate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=cwd)


@pytest.mark.parametrize("named", ["on the command line", "in the configuration"])
def test_a_log_in_redis_is_estimated_from(
    redis_server: RedisServer, tmp_path: Path, named: str
) -> None:
    log = RedisEventLog(redis_server.url, LearningSettings())
    fill(log, 4_000)
    log.close()
    arguments = [redis_server.url]
    if named == "in the configuration":
        config = tmp_path / "echolm.toml"
        config.write_text(f'event_log = "{redis_server.url}"\n')
        arguments = [f"--config={config}"]
    # There is no data directory.
    done = estimate(*arguments, "--cost-weight=0.4", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    policies = json.loads(done.stdout)["policies"]
    for llm, truth in TRUTH.items():
        found = policies[f"always {llm}"]["dr"]
        assert abs(found["value"] - truth) < 3 * found["standard_error"]
    assert {"cost weight 0.4", "0.4, greedy"} < set(policies)


def test_a_server_that_does_not_answer_is_named(redis_server: RedisServer, tmp_path: Path) -> None:
    redis_server.kill()
    done = estimate(redis_server.url, cwd=tmp_path)
    assert done.returncode == 1
    assert f"learning log 127.0.0.1:{redis_server.port}" in done.stderr
