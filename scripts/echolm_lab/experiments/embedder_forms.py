"""Forms of the embedder and what is measured of them: speed, cosine to fp32, neighbours."""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from echolm.embedding import EmbedderSpec, OnnxEmbedder, TextTokenizer
from onnx import helper, numpy_helper

Vectors = npt.NDArray[np.float32]
BATCHES = (1, 4, 16)
_SPEED_TEXTS = 64


def int8_dynamic(source: Path, target: Path) -> None:
    """ONNX Runtime's dynamic int8: weights per channel, activations per tensor."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        source, target, per_channel=True, reduce_range=False, weight_type=QuantType.QInt8
    )


def int8_ffn(source: Path, target: Path) -> None:
    """As int8_dynamic, the first product of each feed-forward block only."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    nodes = [node.name for node, name in _products(onnx.load(source)) if "intermediate" in name]
    quantize_dynamic(
        source, target, per_channel=True, weight_type=QuantType.QInt8, nodes_to_quantize=nodes
    )


def int8_blocks(source: Path, target: Path, *, block: int) -> None:
    """ONNX Runtime's MatMulNBits: a scale per block of weights and of activations."""
    model = onnx.load(source)
    constants = {constant.name: constant for constant in model.graph.initializer}
    for node, name in _products(model):
        weight = numpy_helper.to_array(constants[name]).T
        blocks = weight.reshape(len(weight), -1, block)
        scales = np.abs(blocks).max(axis=2) / 127
        values = (np.rint(blocks / scales[:, :, None]) + 128).astype(np.uint8)
        model.graph.initializer.remove(constants[name])
        model.graph.initializer.extend(
            [
                numpy_helper.from_array(values, f"{name}.q"),
                numpy_helper.from_array(scales.reshape(-1), f"{name}.s"),
            ]
        )
        replacement = helper.make_node(
            "MatMulNBits",
            [node.input[0], f"{name}.q", f"{name}.s"],
            list(node.output),
            domain="com.microsoft",
            K=weight.shape[1],
            N=weight.shape[0],
            bits=8,
            block_size=block,
            accuracy_level=4,
        )
        node.CopyFrom(replacement)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, target)


def padded_rows(source: Path, target: Path) -> None:
    """The same graph with another name for a tensor, so that its texts are not packed."""
    model = onnx.load(source)
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["scores_bias" if name == "attention_bias" else name for name in names]
    onnx.save(model, target)


def _products(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, str]]:
    """Products with a constant matrix, and its name."""
    constants = {constant.name for constant in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in constants:
            yield node, node.input[1]


@dataclass(frozen=True)
class Form:
    """One form of the embedder.

    Attributes:
        make: writes its file from that of the fp32 graph; None: it runs that file.
    """

    name: str
    runtime: str = "onnxruntime"
    precision: str = "fp32"
    make: Callable[[Path, Path], None] | None = None


FORMS = (
    Form("fp32 (onnxruntime)"),
    Form("int8 dynamic (onnxruntime)", make=int8_dynamic),
    Form("int8 ffn-up only (onnxruntime)", make=int8_ffn),
    Form("int8 blocks of 32 (onnxruntime)", make=functools.partial(int8_blocks, block=32)),
    Form("int8 blocks of 128 (onnxruntime)", make=functools.partial(int8_blocks, block=128)),
    Form("fp32 (openvino)", "openvino"),
    Form("bf16 (openvino)", "openvino", "bf16"),
    Form("int8 (openvino)", "openvino", "int8"),
    Form("int8, padded rows (openvino)", "openvino", "int8", padded_rows),
    Form("fast (openvino)", "openvino", "fast"),
)


def load(forms: tuple[Form, ...], folder: Path, threads: int) -> dict[str, OnnxEmbedder]:
    base = EmbedderSpec.read(folder)
    loaded = {}
    for index, form in enumerate(forms):
        path = folder / "model.onnx"
        try:
            if form.make is not None:
                path = folder / f"{index}.onnx"
                form.make(folder / "model.onnx", path)
            changes: dict[str, Any] = {
                "runtime": form.runtime,
                "precision": form.precision,
            }
            spec = dataclasses.replace(base, **changes)
            loaded[form.name] = OnnxEmbedder(path, spec, threads=threads)
        except Exception as error:  # a form that this machine lacks is a result, too
            print(f"{form.name}: dropped: {error}", file=sys.stderr)
    return loaded


def speed(
    forms: dict[str, OnnxEmbedder], tokenizer: TextTokenizer, texts: list[str], rounds: int
) -> dict[str, dict[int, float]]:
    """Median milliseconds of CPU time for a text, by form and batch size.

    Batches are of texts as they come, so of differing lengths, another shape each time.
    """
    result: dict[str, dict[int, float]] = {name: {} for name in forms}
    for size in BATCHES:
        count = max(_SPEED_TEXTS // size, 4)
        batches = [tokenizer.encode(texts[i * size : (i + 1) * size]) for i in range(count)]
        times: dict[str, list[float]] = {name: [] for name in forms}
        for turn in range(rounds + 1):
            for name, form in forms.items():
                start = time.process_time()
                for batch in batches:
                    form.embed(batch.input_ids, batch.attention_mask)
                if turn:  # the first prepares the libraries for these shapes
                    times[name].append((time.process_time() - start) / (count * size) * 1e3)
        for name in forms:
            result[name][size] = float(np.median(times[name]))
    return result


def embed_all(
    form: OnnxEmbedder, tokenizer: TextTokenizer, texts: list[str], label: str
) -> Vectors:
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    vectors = np.empty((len(texts), form.dimension), np.float32)
    for start in range(0, len(texts), 64):
        rows = order[start : start + 64]
        batch = tokenizer.encode([texts[row] for row in rows])
        vectors[rows] = form.embed(batch.input_ids, batch.attention_mask)
        if sys.stderr.isatty():
            print(f"\r{label}: {start + len(rows)}/{len(texts)} ", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    return vectors


def nearest(vectors: Vectors, corpus: int, count: int = 10) -> npt.NDArray[np.intp]:
    return np.argpartition(-(vectors[corpus:] @ vectors[:corpus].T), count, axis=1)[:, :count]
