from __future__ import annotations

from echolm.engines.prefix_cache import PrefixCacheEstimate
from hypothesis import given
from hypothesis import strategies as st


def tokens(start: int, n: int) -> list[int]:
    return list(range(start, start + n))


def test_whole_blocks_of_a_known_prefix_are_found() -> None:
    cache = PrefixCacheEstimate(100, block_tokens=4)
    assert cache.prompt(tokens(0, 11)) == 0
    assert cache.prompt(tokens(0, 11)) == 8
    assert cache.prompt([*tokens(0, 6), 99, 98, 97]) == 4
    assert cache.prompt([99, *tokens(1, 10)]) == 0
    assert cache.hit_tokens == 12


def test_a_block_counts_only_behind_the_same_tokens() -> None:
    cache = PrefixCacheEstimate(100, block_tokens=4)
    cache.prompt([*tokens(0, 4), *tokens(50, 4), 1])
    assert cache.prompt([*tokens(90, 4), *tokens(50, 4), 1]) == 0


def test_the_last_token_is_never_found() -> None:
    cache = PrefixCacheEstimate(100, block_tokens=4)
    cache.prompt(tokens(0, 8))
    assert cache.prompt(tokens(0, 8)) == 4


def test_an_answer_continues_its_prompt_and_takes_up_room() -> None:
    cache = PrefixCacheEstimate(4, block_tokens=4)
    cache.prompt(tokens(0, 4))
    cache.answered(tokens(0, 12))
    assert cache.prompt(tokens(0, 13)) == 12
    cache.answered(tokens(100, 16))
    assert cache.prompt(tokens(0, 13)) == 0


@given(st.lists(st.lists(st.integers(0, 2), max_size=20), max_size=20), st.integers(1, 40))
def test_no_more_is_found_than_was_there(prompts: list[list[int]], blocks: int) -> None:
    cache = PrefixCacheEstimate(blocks, block_tokens=4)
    seen: list[list[int]] = []
    for prompt in prompts:
        hit = cache.prompt(prompt)
        assert hit % 4 == 0
        assert hit < max(1, len(prompt))
        assert hit == 0 or any(old[:hit] == prompt[:hit] for old in seen)
        seen.append(prompt)
