from __future__ import annotations

import random

from echolm.past_traffic.record import Logged
from echolm.past_traffic.sample import HashSample


def sampled(size: int, log: list[Logged]) -> list[Logged]:
    sample = HashSample(size)
    for logged in log:
        sample.offer(logged)
    return sample.all()


LOG = [Logged(f"request {n}", f"answer {n}") for n in range(500)]


def test_the_sample_depends_on_the_requests_alone() -> None:
    first = sampled(40, LOG)
    shuffled = random.Random(1).sample(LOG, len(LOG))
    assert sampled(40, shuffled) == first and len(first) == 40
    assert sampled(10, LOG) == first[:10]
    assert sampled(1_000, LOG) == sorted(LOG, key=lambda logged: logged.request_hash)
    assert sampled(0, LOG) == []


def test_of_a_log_that_has_grown_most_is_sampled_again() -> None:
    grown = LOG + [Logged(f"later {n}", "a") for n in range(50)]
    assert len(set(map(id, sampled(40, LOG))) & set(map(id, sampled(40, grown)))) >= 30


def test_a_request_that_comes_often_is_sampled_once_and_with_its_first_answer() -> None:
    log = [Logged("Request 1", f"answer {n}") for n in range(20)] * 3 + LOG[:3]
    assert [one.response for one in sampled(10, log) if "1" in one.request] == ["answer 0"]
    assert len(sampled(10, log)) == 3


def test_every_request_is_as_likely() -> None:
    hits = [0, 0]
    for seed in range(200):
        log = [Logged(f"{seed} {n}", "a") for n in range(20)]
        for logged in sampled(5, log):
            hits[int(logged.request.split()[1]) >= 10] += 1
    assert abs(hits[0] - hits[1]) < 4 * (1_000 * 0.25) ** 0.5 * 2
