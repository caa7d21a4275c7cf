"""Texts one after another in one call give the vectors that they have alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from echolm.embedding import EmbedderSpec, TextTokenizer
from echolm.embedding.openvino import OpenVinoSession, PackedSession
from echolm.embedding.packing import CAPACITY, Packed, bins, call_size
from echolm.embedding.runtimes import open_session

from .conftest import Reference


def test_each_row_is_in_one_call_and_no_call_has_more_than_its_capacity() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 40)
    calls = bins(lengths)
    assert sorted(np.concatenate(calls).tolist()) == list(range(40))
    assert all(lengths[rows].sum() <= CAPACITY for rows in calls)
    # As few as their tokens allow, but for one.
    assert len(calls) <= -(-int(lengths.sum()) // CAPACITY) + 1


def test_a_text_longer_than_a_call_has_one_with_room_for_short_ones() -> None:
    lengths = np.asarray([200, 100, 20, 60])
    assert [rows.tolist() for rows in bins(lengths)] == [[0, 2], [1], [3]]


@pytest.mark.parametrize(
    ("tokens", "size"), [(1, 16), (16, 16), (17, 32), (128, 128), (129, 192), (256, 256)]
)
def test_calls_have_few_sizes(tokens: int, size: int) -> None:
    assert call_size(tokens) == size


def test_tokens_see_those_of_their_own_text_only() -> None:
    ids = np.asarray([[5, 6, 7, 0], [8, 9, 0, 0]])
    mask = np.asarray([[1, 0, 1, 0], [1, 1, 0, 0]])
    packed = Packed.of(ids, mask)
    assert packed.size == 16
    assert packed.ids.tolist() == [5, 7, 8, 9]
    assert packed.positions.tolist() == [0, 2, 0, 1]
    assert packed.starts.tolist() == [0, 2]
    seen = packed.attention_bias[0, 0] == 0
    text = np.asarray([0, 0, 1, 1, *[2] * 12])
    np.testing.assert_array_equal(seen, text[:, None] == text)
    vectors = np.arange(32, dtype=np.float32).reshape(16, 2)
    assert packed.means(vectors).tolist() == [[1, 2], [5, 6]]


def test_packed_texts_have_the_vectors_of_padded_rows(
    fast_folder: Path, tokenizer: TextTokenizer, reference: Reference, tmp_path: Path
) -> None:
    spec = dataclasses.replace(EmbedderSpec.read(fast_folder), precision="fp32")
    packed = open_session(fast_folder / "model.onnx", spec, threads=2)
    assert isinstance(packed, PackedSession)
    packed.warm_up()
    model = onnx.load(fast_folder / "model.onnx")
    for node in model.graph.node:  # as another's graph, whose tensors have other names
        for names in (node.input, node.output):
            names[:] = ["scores" if name == "attention_bias" else name for name in names]
    onnx.save(model, tmp_path / "model.onnx")
    padded = open_session(tmp_path / "model.onnx", spec, threads=2)
    assert isinstance(padded, OpenVinoSession)
    words = "and many more words than a call has room for " * 20
    batch = tokenizer.encode([*reference.texts, words])
    mask = batch.attention_mask.copy()
    mask[0, 1] = 0  # a hole in a text is hidden as its padding is
    np.testing.assert_allclose(
        packed.run(batch.input_ids, mask), padded.run(batch.input_ids, mask), rtol=0, atol=1e-5
    )
