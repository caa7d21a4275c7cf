from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from echolm.conversation import Turn, transcript
from echolm.embedding import EmbedderSpec, OnnxEmbedder, TextTokenizer
from echolm.embedding.embedder import length_groups
from echolm.embedding.runtimes import open_session
from echolm.errors import ConfigurationError, InvalidRequestError

from .conftest import Reference

Ids = npt.NDArray[np.int64]
SPEC = EmbedderSpec("tiny", 3, 16, vocabulary=100)


class StubSession:
    """Gives the same row for every text, and notes the shapes it was called with."""

    precision = "fp32"
    call_tokens = 32

    def __init__(self, *row: float) -> None:
        self.row = row
        self.shapes: list[tuple[int, ...]] = []

    def run(self, input_ids: Ids, attention_mask: Ids) -> npt.NDArray[np.float32]:
        self.shapes.append(input_ids.shape)
        return np.tile(np.asarray(self.row, np.float32), (len(input_ids), 1))


def tiny(session: StubSession | None = None) -> OnnxEmbedder:
    return OnnxEmbedder(Path("tiny.onnx"), SPEC, session=session or StubSession(1, 0, 0))


@pytest.mark.parametrize("form", ["fp32", "fast"])
def test_vectors_have_unit_length_and_do_not_depend_on_the_batch(
    form: str, tokenizer: TextTokenizer, reference: Reference, request: pytest.FixtureRequest
) -> None:
    embedder: OnnxEmbedder = request.getfixturevalue(form)
    batch = tokenizer.encode(reference.texts)
    together = embedder.embed(batch.input_ids, batch.attention_mask)
    assert together.dtype == np.float32
    assert together.shape == (len(reference.texts), 384)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    for row, text in enumerate(reference.texts):
        alone = tokenizer.encode([text])
        vector = embedder.embed(alone.input_ids, alone.attention_mask)[0]
        assert vector @ together[row] > (1 - 1e-6 if embedder.precision == "fp32" else 0.9995)


@pytest.mark.parametrize("form", ["fp32", "fast"])
def test_threads_may_share_one_embedder(
    form: str, tokenizer: TextTokenizer, request: pytest.FixtureRequest
) -> None:
    embedder: OnnxEmbedder = request.getfixturevalue(form)
    batches = [tokenizer.encode([f"text {i}", "and more words " * (i % 5)]) for i in range(16)]
    alone = [embedder.embed(b.input_ids, b.attention_mask) for b in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda b: embedder.embed(b.input_ids, b.attention_mask), batches))
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_a_row_of_several_parts_has_the_mean_of_their_vectors(
    fp32: OnnxEmbedder, fp32_folder: Path
) -> None:
    tokenizer = TextTokenizer(fp32_folder / "tokenizer.json", 24)
    talk = [Turn("user", "rain in Rome?"), Turn("assistant", "no"), Turn("user", "and in May?")]
    batch = tokenizer.encode([transcript(talk), "rain in Rome?", "word " * 100])
    assert batch.attention_mask.max() == 3
    found = fp32.embed(batch.input_ids, batch.attention_mask)
    texts = ["rain in rome? no and in may?", "and in May?", "rain in Rome? no"]
    apart = tokenizer.encode(texts)
    mean = fp32.embed(apart.input_ids, apart.attention_mask).mean(axis=0)
    np.testing.assert_allclose(found[0], mean / np.linalg.norm(mean), atol=1e-6)
    plain = tokenizer.encode(["rain in Rome?", "word " * 100])
    alone = fp32.embed(plain.input_ids, plain.attention_mask)
    np.testing.assert_allclose(found[1:], alone, atol=1e-6)
    # Triton's ONNX Runtime backend runs the graph alone.
    session = open_session(fp32_folder / "model.onnx", fp32.spec, threads=2)
    in_graph = session.run(batch.input_ids, batch.attention_mask)
    np.testing.assert_allclose(in_graph, found, atol=1e-5)


def test_padding_beyond_the_longest_row_is_not_computed() -> None:
    session = StubSession(1, 0, 0)
    mask = np.zeros((2, 16), np.int64)
    mask[:, :3] = 1
    tiny(session).embed(np.zeros_like(mask), mask)
    assert session.shapes[-1] == (2, 3)


def test_groups_hold_each_row_once_and_save_padding() -> None:
    lengths = np.asarray([5, 200, 6, 190, 5, 7], np.int64)
    groups = [group.tolist() for group in length_groups(lengths, call_tokens=32)]
    assert groups == [[0, 4, 2, 5], [3, 1]]
    assert [g.tolist() for g in length_groups(np.asarray([4, 9], np.int64), 32)] == [[0, 1]]


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[1, 2]], [[1, 1, 1]], "attention_mask: expected the shape of input_ids"),
        ([1, 2], [1, 1], "input_ids: expected INT64"),
        (np.ones((1, 2), np.int32), [[1, 1]], "input_ids: expected INT64.*got int32"),
        (np.ones((0, 2), np.int64), np.ones((0, 2), np.int64), "at least one row"),
        ([[1, 2]], [[1, 4]], "attention_mask: expected 0, or a part's number from 1 to 3"),
        ([[1, 2]], [[1, -1]], "attention_mask: expected 0, or a part's number from 1 to 3"),
        ([[1, 2]], [[0, 0]], "in each row"),
        (np.ones((1, 18), np.int64), [[1] + [2] * 17], "at most 16 tokens in a part, got 17"),
        (
            np.ones((1, 17), np.int64),
            np.ones((1, 17), np.int64),
            "at most 16 tokens in a part, got 17",
        ),
        ([[1, 100]], [[1, 1]], "ids from 0 to below 100, got 1 to 100"),
        ([[-1, 1]], [[1, 1]], "ids from 0"),
    ],
)
def test_wrong_input_is_refused_with_what_was_expected(
    ids: object, mask: object, message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        tiny().embed(np.asarray(ids), np.asarray(mask))


def test_a_missing_model_names_the_command_that_builds_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="build_embedder"):
        OnnxEmbedder.load(tmp_path)
    with pytest.raises(ConfigurationError, match="build_embedder"):
        OnnxEmbedder(tmp_path / "model.onnx", SPEC)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_file_that_is_no_model_is_a_configuration_error(tmp_path: Path, runtime: str) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    spec = EmbedderSpec("tiny", 3, 16, runtime=runtime)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="cannot load"):
        OnnxEmbedder(tmp_path / "model.onnx", spec)


def test_another_dimension_than_described_stops_the_start(fp32_folder: Path) -> None:
    spec = dataclasses.replace(EmbedderSpec.read(fp32_folder), dimension=768)
    with pytest.raises(ConfigurationError, match=r"expected 768 dimensions.*got shape \[2, 384\]"):
        OnnxEmbedder(fp32_folder / "model.onnx", spec)


@pytest.mark.parametrize("row", [(2.0, 0.0, 0.0), (float("nan"), 0.0, 0.0)])
def test_a_model_without_unit_vectors_stops_the_start(row: tuple[float, ...]) -> None:
    with pytest.raises(ConfigurationError, match="expected vectors of length 1"):
        tiny(StubSession(*row))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dimension": 0}, "dimension: expected an integer > 0, got 0"),
        ({"name": ""}, "name: expected a name"),
        ({"runtime": "tensorflow"}, "runtime: expected one of"),
        ({"precision": "bf16", "runtime": "onnxruntime"}, "precision: expected 'fp32'"),
        ({"colour": "red"}, r"unknown keys \['colour'\]"),
    ],
)
def test_a_wrong_description_names_the_key(
    fp32_folder: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    right = json.loads((fp32_folder / "embedder.json").read_text())
    (tmp_path / "embedder.json").write_text(json.dumps(right | changes))
    with pytest.raises(ConfigurationError, match=message):
        EmbedderSpec.read(tmp_path)


def test_cuda_without_its_provider_is_refused_with_the_package_that_has_it(tmp_path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    (tmp_path / "model.onnx").touch()
    spec = EmbedderSpec("tiny", 3, 16, runtime="cuda")
    with pytest.raises(ConfigurationError, match=r"CUDAExecutionProvider.*install onnxruntime-gpu"):
        OnnxEmbedder(tmp_path / "model.onnx", spec)
