"""The example store against a real Milvus Lite and a real Milvus server."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from echolm.errors import ConfigurationError, UnavailableError
from echolm.primitives import Candidate
from echolm.serving.milvus_lite import MilvusLite
from echolm.settings import RetrievalSettings
from echolm.store import milvus as milvus_module
from echolm.store.base import Example, Query, scope_key
from echolm.store.columns import FOUND_FIELDS
from echolm.store.milvus import MilvusStore
from hypothesis import given
from hypothesis import strategies as st
from milvus_server import MilvusServer, start_milvus_lite
from numpy.typing import NDArray
from pymilvus import MilvusClient

D = 8
NOW = 1_800_000_000_000


@pytest.fixture(scope="module", params=["lite", "server"])
def milvus(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MilvusLite | MilvusServer]:
    directory = tmp_path_factory.mktemp("milvus")
    server = start_milvus_lite(directory) if request.param == "lite" else MilvusServer(directory)
    yield server
    server.stop()


@pytest.fixture
def settings(
    milvus: MilvusLite | MilvusServer, request: pytest.FixtureRequest
) -> RetrievalSettings:
    """A collection of its own for every test."""
    return RetrievalSettings(milvus_uri=milvus.uri, collection=f"c_{abs(hash(request.node.name))}")


@pytest.fixture
def store(settings: RetrievalSettings) -> MilvusStore:
    return MilvusStore(settings, "fake", D)


def example(id: int, tenant: str = "t", system: str = "", **more: int) -> Example:
    return Example(
        id=id,
        request=f"request {id}",
        response=f"réponse {id}",
        tenant=tenant,
        scope=scope_key(tenant, system),
        source_llm="large_llm",
        quality=0.75,
        created_at_ms=NOW,
        updated_at_ms=NOW,
        **more,
    )


def unit(k: int) -> NDArray[np.float32]:
    return np.eye(D, dtype=np.float32)[k : k + 1]


def find(
    store: MilvusStore,
    tenant: str = "t",
    system: str = "",
    k: int = 0,
    now: int = NOW,
) -> list[Candidate]:
    return store.search(unit(k), [Query.of(tenant, system)], 10, now, fresh=True)[0]


def eventually(true: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.05)
    return true()


def answers(store: MilvusStore) -> bool:
    try:
        find(store)
    except UnavailableError:
        return False
    return True


def test_an_example_is_found_with_what_was_stored(store: MilvusStore) -> None:
    store.upsert([example(2**62), example(7)], np.concatenate([unit(0), unit(1)]))
    found = find(store)
    assert [c.id for c in found] == [2**62, 7]
    best = found[0]
    assert (best.request, best.response) == (f"request {2**62}", f"réponse {2**62}")
    assert (best.tenant, best.quality) == ("t", 0.75)
    assert best.similarity == pytest.approx(1.0, abs=1e-5)
    assert found[1].similarity == pytest.approx(0.0, abs=1e-5)


NAMES = [
    'a "quoted" name',
    "it's",
    "back\\slash\\",
    "日本",
    "😀",
    "\u202ertl",
    "100%",
    "{a}",
    '" or id > 0',
]


def test_a_tenant_is_found_by_whatever_name_it_has(store: MilvusStore) -> None:
    examples = [example(i, name) for i, name in enumerate(NAMES)]
    store.upsert(examples, np.repeat(unit(0), len(NAMES), axis=0))
    for i, name in enumerate(NAMES):
        assert [e.tenant for batch in store.scan(name) for e, _ in batch] == [name]
        assert [c.id for c in find(store, name)] == [i]


def test_a_batch_keeps_its_rows_and_finds_only_the_own_scope(store: MilvusStore) -> None:
    store.upsert(
        [example(1, "a"), example(2, "b"), example(3, "a", "rules"), example(4, "a")],
        np.concatenate([unit(0), unit(0), unit(0), unit(1)]),
    )
    queries = [
        Query.of("a", ""),
        Query.of("b", ""),
        Query.of("a", "rules"),
        Query.of("c", ""),
        Query.of("a", ""),
    ]
    rows = np.concatenate([unit(0)] * 4 + [unit(1)])
    found = store.search(rows, queries, 1, NOW, fresh=True)
    assert [[c.id for c in row] for row in found] == [[1], [2], [3], [], [4]]


@pytest.fixture
def sent(store: MilvusStore, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The searches that are sent to Milvus, one after the other."""
    requests: list[Any] = []
    stub = store._client._get_connection()._stub
    to_milvus = stub.Search

    def recorded(request: Any, **options: Any) -> Any:
        requests.append(request)
        return to_milvus(request, **options)

    monkeypatch.setattr(stub, "Search", recorded)
    return requests


def test_a_batch_of_one_scope_costs_one_search(store: MilvusStore, sent: list[Any]) -> None:
    store.search(np.concatenate([unit(0)] * 32), [Query.of("t", "")] * 32, 4, NOW)
    assert [request.nq for request in sent] == [32]


@pytest.mark.parametrize("fresh", [True, False])
def test_a_search_asks_and_reads_what_that_of_pymilvus_does(
    settings: RetrievalSettings, store: MilvusStore, sent: list[Any], fresh: bool
) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((40, D)).astype(np.float32)
    vectors[20:30] = vectors[5]  # which are equally near to everything
    texts = [" ", "\U0001f600 你好", "line\nbreak", "x" * 5_000]
    examples = [
        replace(
            example(id),
            request=texts[id % 4],
            response=texts[id % 3],
            quality=float(np.float32(rng.random())),
            answer_keys="k" * (id % 2),
        )
        for id in range(1, 41)
    ]
    store.upsert(examples, vectors)
    find(store)  # afresh, so that a search that may be late finds them, too
    asked = np.concatenate([vectors[[5, 0]], unit(3)])
    del sent[:]
    found = store.search(asked, [Query.of("t", "")] * 3, 16, NOW, fresh)
    hits = store._client.search(
        settings.collection,
        data=list(asked),
        anns_field="embedding",
        filter=f"scope == {scope_key('t', '')} and expires_at_ms > {NOW}",
        limit=16,
        output_fields=["request", "response", "tenant", "quality", "answer_keys"],
        search_params={"params": settings.search_params},
        timeout=30,
        consistency_level="Strong" if fresh else "Bounded",
    )
    ours, theirs = sent
    assert ours == theirs
    assert found == [
        [Candidate(id=hit["id"], similarity=hit["distance"], **hit["entity"]) for hit in row]
        for row in hits
    ]
    assert [len(row) for row in found] == [16] * 3
    by_id = {e.id: e for e in examples}
    for candidate in found[0]:
        stored = by_id[candidate.id]
        for name in FOUND_FIELDS:
            assert getattr(candidate, name) == getattr(stored, name)


def test_a_search_in_an_empty_collection_finds_nothing(store: MilvusStore) -> None:
    for fresh in (True, False):
        queries = [Query.of("t", ""), Query.of("t", "")]
        assert store.search(unit(0).repeat(2, 0), queries, 4, NOW, fresh) == [[], []]


def test_a_hash_that_collides_does_not_cross_tenants(store: MilvusStore) -> None:
    stolen = example(1, "other")
    store.upsert([Example(**{**stolen.__dict__, "scope": scope_key("t", "")})], unit(0))
    assert find(store) == []


def test_expired_examples_are_not_found(store: MilvusStore) -> None:
    store.upsert(
        [example(1, expires_at_ms=NOW + 120_000), example(2)], np.concatenate([unit(0), unit(0)])
    )
    assert {c.id for c in find(store)} == {1, 2}
    assert {c.id for c in find(store, now=NOW + 180_000)} == {2}


def test_the_same_id_twice_is_one_example(store: MilvusStore) -> None:
    store.upsert([example(1)], unit(0))
    store.upsert([example(1)], unit(1))
    assert store.count() == 1
    assert find(store, k=1)[0].similarity == pytest.approx(1.0, abs=1e-5)


def test_the_same_id_twice_at_once_is_one_example(store: MilvusStore) -> None:
    store.upsert([example(1), example(1)], np.concatenate([unit(0), unit(1)]))
    assert store.count() == 1
    assert find(store, k=1)[0].similarity == pytest.approx(1.0, abs=1e-5)


def test_an_example_that_was_written_again_outlives_a_restart(tmp_path: Path) -> None:
    server = start_milvus_lite(tmp_path)
    try:
        settings = RetrievalSettings(milvus_uri=server.uri)
        for k in range(3):
            MilvusStore(settings, "fake", D).upsert([example(1), example(2)], unit(k).repeat(2, 0))
        server.kill()
        server.start()
        store = MilvusStore(settings.model_copy(update={"milvus_uri": server.uri}), "fake", D)
        assert store.count() == 2
        assert [c.similarity for c in find(store, k=2)] == pytest.approx([1.0, 1.0], abs=1e-5)
    finally:
        server.stop()


def test_deleting(store: MilvusStore) -> None:
    store.upsert([example(1), example(2)], np.concatenate([unit(0), unit(0)]))
    store.delete([1, 99])
    store.delete([])
    assert store.count() == 1
    assert [c.id for c in find(store)] == [2]


def test_texts_may_hold_anything(store: MilvusStore) -> None:
    texts = ['"quotes" \\ {json}', "line\nbreak\ttab", "\U0001f600 你好", "x" * 30_000, "' or 1==1"]
    rows = [Example(**{**example(i).__dict__, "request": t}) for i, t in enumerate(texts)]
    store.upsert(rows, np.concatenate([unit(0)] * len(rows)))
    assert {c.request for c in find(store)} == set(texts)


def test_opening_again_keeps_the_examples(store: MilvusStore, settings: RetrievalSettings) -> None:
    store.upsert([example(1)], unit(0))
    assert MilvusStore(settings, "fake", D).count() == 1


@pytest.mark.parametrize(("name", "dimension"), [("other", D), ("fake", D + 1)])
def test_another_embedding_models_collection_is_refused(
    store: MilvusStore, settings: RetrievalSettings, name: str, dimension: int
) -> None:
    with pytest.raises(ConfigurationError, match=r"expected one made for .*, got .*'fake'"):
        MilvusStore(settings, name, dimension)


def test_a_collection_that_is_not_ours_is_refused(settings: RetrievalSettings) -> None:
    client = MilvusClient(uri=settings.milvus_uri)
    client.create_collection(settings.collection, dimension=D)
    with pytest.raises(ConfigurationError, match=r"set retrieval\.collection to another name"):
        MilvusStore(settings, "fake", D)


def test_without_an_address_nothing_starts() -> None:
    with pytest.raises(ConfigurationError, match=r"retrieval\.milvus_uri: expected an address"):
        MilvusStore(RetrievalSettings(), "fake", D)


@pytest.mark.timeout(120)
def test_an_outage_is_unavailable_at_once_and_over_when_milvus_is_back(tmp_path: Path) -> None:
    server = start_milvus_lite(tmp_path)
    try:
        store = MilvusStore(RetrievalSettings(milvus_uri=server.uri), "fake", D, wait=True)
        store.upsert([example(1)], unit(0))
        os.kill(server.process.pid() or 0, signal.SIGKILL)
        assert eventually(lambda: server.poll() is not None)
        with pytest.raises(UnavailableError):
            find(store)
        for call in (
            lambda: find(store),
            store.count,
            lambda: store.upsert([example(2)], unit(0)),
            lambda: store.delete([1]),
        ):
            started = time.monotonic()
            with pytest.raises(UnavailableError, match="example store suspended"):
                call()
            assert time.monotonic() - started < 1
        server.start()
        assert eventually(lambda: answers(store))
        assert [c.id for c in find(store)] == [1]  # acknowledged examples survived
        store.close()
    finally:
        server.stop()


@pytest.mark.timeout(120)
def test_a_milvus_that_hangs_costs_one_timeout_and_not_every_request(tmp_path: Path) -> None:
    server = start_milvus_lite(tmp_path)
    pid = server.process.pid() or 0
    try:
        settings = RetrievalSettings(milvus_uri=server.uri, search_timeout_s=0.3)
        store = MilvusStore(settings, "fake", D, wait=True)
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(UnavailableError):
            find(store)
        started = time.monotonic()
        for _ in range(20):
            with pytest.raises(UnavailableError, match="suspended"):
                find(store)
        assert time.monotonic() - started < 1
        os.kill(pid, signal.SIGCONT)
        assert eventually(lambda: answers(store), 40)
        store.close()
    finally:
        os.kill(pid, signal.SIGCONT)
        server.stop()


@pytest.mark.timeout(120)
def test_a_milvus_that_comes_later_is_taken_then(tmp_path: Path) -> None:
    server = start_milvus_lite(tmp_path)
    server.stop()
    store = MilvusStore(RetrievalSettings(milvus_uri=server.uri), "fake", D, wait=True)
    with pytest.raises(UnavailableError):
        store.count()
    server.start()
    try:
        assert eventually(lambda: answers(store))
        store.upsert([example(1)], unit(0))
        assert store.count() == 1
        store.close()
    finally:
        server.stop()


def test_another_models_collection_is_refused_at_the_start(
    store: MilvusStore, settings: RetrievalSettings
) -> None:
    with pytest.raises(ConfigurationError):
        MilvusStore(settings, "other", D, wait=True)


def test_a_scan_gives_every_example_once_in_order(store: MilvusStore) -> None:
    ids = [7, 2**62, *range(100, 1_300)]
    for start in range(0, len(ids), 400):
        part = ids[start : start + 400]
        store.upsert(
            [example(i, "a" if i % 2 else "b") for i in part], unit(0).repeat(len(part), 0)
        )
    scanned = [e for batch in store.scan(batch=100) for e, _ in batch]
    assert [e.id for e in scanned] == sorted(ids)
    assert scanned[0] == example(7, "a")
    only = [e for batch in store.scan("a") for e, _ in batch]
    assert [e.id for e in only] == sorted(i for i in ids if i % 2)
    assert list(store.scan('no "such" tenant')) == []


def test_examples_are_found_by_id(store: MilvusStore) -> None:
    store.upsert([example(1, uses=4), example(2)], np.concatenate([unit(0), unit(1)]))
    [(found, vector)] = store.get([1, 99])
    assert found == example(1, uses=4)
    np.testing.assert_array_equal(vector, unit(0)[0])
    assert store.get([]) == []


TENANTS = ["a", "b", 'a" or scope > 0 or tenant == "', "ä", " a"]
SYSTEMS = ["", "be brief", "b"]


@pytest.fixture(scope="module", params=[False, True], ids=["", "partitioned"])
def crowded(milvus: MilvusLite | MilvusServer, request: pytest.FixtureRequest) -> MilvusStore:
    """An example of every tenant under every system prompt, all of one embedding."""
    if request.param and isinstance(milvus, MilvusLite):
        pytest.skip("Milvus Lite has no partition keys")
    name = f"crowded_{request.param}"
    settings = RetrievalSettings(
        milvus_uri=milvus.uri, collection=name, partition_by_tenant=request.param
    )
    store = MilvusStore(settings, "fake", D)
    places = [(tenant, system) for tenant in TENANTS for system in SYSTEMS]
    examples = [example(k, *place) for k, place in enumerate(places, start=1)]
    store.upsert(examples, unit(0).repeat(len(examples), 0))
    return store


@given(
    places=st.lists(
        st.tuples(st.sampled_from([*TENANTS, "nobody"]), st.sampled_from([*SYSTEMS, "other"])),
        min_size=1,
        max_size=6,
    )
)
@hypothesis.settings(max_examples=40, deadline=None)
def test_no_example_crosses_from_one_tenant_or_system_prompt_to_another(
    crowded: MilvusStore, places: list[tuple[str, str]]
) -> None:
    queries = [Query.of(*place) for place in places]
    found = crowded.search(unit(0).repeat(len(places), 0), queries, 16, NOW, fresh=True)
    for (tenant, system), row in zip(places, found, strict=True):
        own = [(t, s) for t in TENANTS for s in SYSTEMS]
        expected = [own.index((tenant, system)) + 1] if (tenant, system) in own else []
        assert [c.id for c in row] == expected


def test_what_may_be_given_as_it_is_is_found_with_its_keys(store: MilvusStore) -> None:
    store.upsert([replace(example(1), answer_keys="k1 k2"), example(2)], np.vstack([unit(0)] * 2))
    assert {c.id: c.answer_keys for c in find(store)} == {1: "k1 k2", 2: ""}
    assert store.keeps_answer_keys
    assert {e.id: e.answer_keys for e, _ in store.get([1, 2])} == {1: "k1 k2", 2: ""}


def test_a_collection_of_the_earlier_schema_goes_on_without_keys(
    settings: RetrievalSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(milvus_module, "_SCHEMA", 1)
        earlier.setattr(milvus_module, "_SCALARS", milvus_module._SCALARS[:-1])
        MilvusStore(settings, "fake", D).close()
    store = MilvusStore(settings, "fake", D)
    assert not store.keeps_answer_keys
    store.upsert([replace(example(1), answer_keys="k1"), example(2)], np.vstack([unit(0)] * 2))
    store.upsert([replace(example(2), answer_keys="k1")], unit(0))
    assert {c.id: c.answer_keys for c in find(store)} == {1: "", 2: ""}
    assert [e.answer_keys for e, _ in store.get([1])] == [""]
    assert [e.id for page in store.scan() for e, _ in page] == [1, 2]
    assert store.count() == 2
    # Copied into a new collection, they have a place for keys.
    new = MilvusStore(settings.model_copy(update={"collection": "c_new"}), "fake", D)
    for page in MilvusStore.existing(settings).scan():
        new.upsert([e for e, _ in page], np.stack([v for _, v in page]))
    assert new.keeps_answer_keys
    assert new.count() == 2
