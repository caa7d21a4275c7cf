from __future__ import annotations

import numpy as np
import pytest
from echolm.errors import UnavailableError
from echolm.store.base import Example, Query, scope_key
from echolm.testing.store import InMemoryStore
from hypothesis import assume, given
from hypothesis import strategies as st

D = 4


def example(id: int, tenant: str = "t", system: str = "", **more: int) -> Example:
    return Example(
        id=id,
        request="request",
        response="response",
        tenant=tenant,
        scope=scope_key(tenant, system),
        source_llm="large_llm",
        quality=0.9,
        created_at_ms=0,
        updated_at_ms=0,
        **more,
    )


def unit(k: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.eye(D, dtype=np.float32)[k]


names = st.text(max_size=6)
tenants = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=6)


@given(st.lists(st.tuples(tenants, names), min_size=1, max_size=10), tenants, names)
def test_a_query_sees_its_own_tenant_and_system_prompt_only(
    stored: list[tuple[str, str]], tenant: str, system: str
) -> None:
    store = InMemoryStore(D)
    for i, (t, s) in enumerate(stored):
        store.upsert([example(i, t, s)], unit(0)[None])
    [found] = store.search(unit(0)[None], [Query.of(tenant, system)], 100, 0)
    assert {c.id for c in found} == {i for i, own in enumerate(stored) if own == (tenant, system)}


@given(names, names, names, names)
def test_scopes_differ_when_tenant_or_system_prompt_differ(a: str, b: str, c: str, d: str) -> None:
    assume((a, b) != (c, d))
    assert scope_key(a, b) != scope_key(c, d)


def test_moving_text_between_tenant_and_system_prompt_changes_the_scope() -> None:
    assert scope_key("ab", "c") != scope_key("a", "bc") != scope_key("", "abc")


def test_the_scope_is_the_same_in_every_process_and_fits_int64() -> None:
    assert scope_key("public", "") == 1196309915970625362
    assert all(0 <= scope_key(str(i), "s") < 2**63 for i in range(200))


def test_expired_examples_are_not_found() -> None:
    store = InMemoryStore(D)
    store.upsert([example(1, expires_at_ms=100), example(2)], np.stack([unit(0), unit(0)]))
    query = [Query.of("t", "")]
    assert [c.id for c in store.search(unit(0)[None], query, 9, 99)[0]] == [1, 2]
    assert [c.id for c in store.search(unit(0)[None], query, 9, 100)[0]] == [2]


def test_the_nearest_come_first_and_at_most_top_n() -> None:
    store = InMemoryStore(D)
    near = (unit(0) + 0.1 * unit(1)) / np.linalg.norm(unit(0) + 0.1 * unit(1))
    store.upsert([example(1), example(2), example(3)], np.stack([unit(1), unit(0), near]))
    [found] = store.search(unit(0)[None], [Query.of("t", "")], 2, 0)
    assert [c.id for c in found] == [2, 3]
    assert found[0].similarity == pytest.approx(1.0)


def test_the_same_id_replaces_and_delete_ignores_the_unknown() -> None:
    store = InMemoryStore(D)
    store.upsert([example(1)], unit(0)[None])
    store.upsert([example(1)], unit(1)[None])
    assert store.count() == 1
    assert store.search(unit(1)[None], [Query.of("t", "")], 1, 0)[0][0].similarity == pytest.approx(
        1
    )
    store.delete([1, 77])
    assert store.count() == 0


def test_an_outage_can_be_played() -> None:
    store = InMemoryStore(D)
    store.error = UnavailableError("down")
    with pytest.raises(UnavailableError):
        store.search(unit(0)[None], [Query.of("t", "")], 1, 0)
    with pytest.raises(UnavailableError):
        store.upsert([example(1)], unit(0)[None])


def test_the_weight_of_an_example_is_its_text_in_bytes() -> None:
    assert example(1).num_bytes == len("request") + len("response")
