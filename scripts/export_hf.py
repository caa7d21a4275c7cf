#!/usr/bin/env python3
"""Write the committed OpenVINO LLMs as Hugging Face checkpoints, for GPU engines.

    export_hf.py --output build/hf            # build/hf/small_llm and build/hf/large_llm
    export_hf.py --model DIR --output OUT     # any Llama folder that was converted

The weights are read from the constants of ``openvino_model.xml``; int8 and
int4 weights are dequantised by the model's own arithmetic. Needs openvino,
numpy and safetensors; neither torch nor transformers. The result loads with
``transformers.AutoModelForCausalLM`` (releases 4.57 and 5), vLLM and TensorRT-LLM.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from echolm_lab.models.checkpoints import readable_by_transformers_4
from numpy.typing import NDArray
from safetensors.numpy import save_file

Array = NDArray[Any]

REPOSITORY = Path(__file__).resolve().parents[1] / "model_repository" / "local"
COMMITTED = {name: REPOSITORY / name / "1" / "openvino" for name in ("small_llm", "large_llm")}
COPIED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
#: Where the weight of a MatMul belongs, from the name of the operation.
_MATMUL = re.compile(r"layers\.(\d+)\.(self_attn|mlp)\.(\w+)/.*MatMul")


def parameters(model: ov.Model, layers: int) -> dict[str, Array]:
    """Hugging Face names and FP32 values of all weights of a Llama ``model``."""
    weights: dict[str, Array] = {}
    norms: dict[str, Array] = {}
    for op in model.get_ops():
        name = op.get_friendly_name()
        kind = op.get_type_name()
        if kind == "MatMul" and (match := _MATMUL.search(name)):
            layer, block, part = match.groups()
            weight = constant(op.input_value(1))
            if not op.get_attributes()["transpose_b"]:
                weight = weight.T
            weights[f"model.layers.{layer}.{block}.{part}.weight"] = weight
        elif kind == "Gather" and "embed_tokens" in name:
            weights["model.embed_tokens.weight"] = constant(op.input_value(0))
        elif kind == "Multiply" and "norm" in name:
            for port in (0, 1):
                if (value := constant_or_none(op.input_value(port))) is not None and value.size > 1:
                    norms[name] = value.reshape(-1)
    for name, value in norms.items():
        if match := re.search(r"layers\.(\d+)\.(input_layernorm|post_attention_layernorm)", name):
            weights[f"model.layers.{match[1]}.{match[2]}.weight"] = value
        elif re.search(r"model\.norm", name):
            weights["model.norm.weight"] = value
    expected = 2 + 9 * layers
    if len(weights) != expected:
        raise ValueError(
            f"expected {expected} weights of a Llama with tied embeddings and {layers} layers, "
            f"found {len(weights)}: {', '.join(sorted(weights))}"
        )
    return weights


def constant(output: ov.Output) -> Array:
    """The value of a subgraph without inputs, such as constant → convert → multiply.

    Raises:
        ValueError: the subgraph depends on an input.
    """
    if _depends_on_an_input(output):
        raise ValueError(f"{output.get_node().get_friendly_name()} is no constant")
    return _value(output)


def constant_or_none(output: ov.Output) -> Array | None:
    """The value of a small subgraph without inputs; None of any other subgraph."""
    return None if _depends_on_an_input(output, most_nodes=8) else _value(output)


def _depends_on_an_input(output: ov.Output, most_nodes: float = math.inf) -> bool:
    """Whether an output depends on an input; assumed beyond ``most_nodes`` nodes."""
    seen, stack = set(), [output.get_node()]
    while stack:
        node = stack.pop()
        if node.get_type_name() in ("Parameter", "ReadValue", "ShapeOf"):
            return True
        if node.get_friendly_name() not in seen:
            seen.add(node.get_friendly_name())
            stack.extend(node.input_value(n).get_node() for n in range(node.get_input_size()))
        if len(seen) > most_nodes:
            return True
    return False


def _value(output: ov.Output) -> Array:
    result = ov.opset13.convert(output, "f32")
    part = ov.Model([ov.opset13.result(result)], [], "weight")
    compiled = ov.Core().compile_model(part, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled([])[0], dtype=np.float32)


def export(source: Path, target: Path, dtype: str) -> dict[str, object]:
    """Writes the checkpoint of the OpenVINO folder ``source`` to ``target``."""
    config = json.loads((source / "config.json").read_text())
    if config.get("model_type") != "llama" or not config.get("tie_word_embeddings"):
        raise ValueError(f"{source} is no Llama with tied embeddings")
    model = ov.Core().read_model(source / "openvino_model.xml")
    weights = parameters(model, config["num_hidden_layers"])
    target.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
    config["dtype"] = dtype
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    readable_by_transformers_4(target)
    tensors = {k: np.ascontiguousarray(v.astype(dtype)) for k, v in weights.items()}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return {"output": str(target), "parameters": sum(v.size for v in tensors.values())}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", type=Path, help="one OpenVINO folder; default: both committed LLMs"
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    args = parser.parse_args(argv)
    jobs = (
        {args.output: args.model}
        if args.model
        else {args.output / n: d for n, d in COMMITTED.items()}
    )
    for target, source in jobs.items():
        if not (source / "openvino_model.xml").exists():
            print(f"{source} holds no openvino_model.xml", file=sys.stderr)
            return 1
        print(f"exporting {source} ...", file=sys.stderr, flush=True)
        try:
            print(json.dumps(export(source, target, args.dtype)))
        except ValueError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
