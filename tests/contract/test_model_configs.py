"""Every config.pbtxt says what ``echolm.contracts`` says, and LLMs what TensorRT-LLM says."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from echolm import contracts
from echolm.contracts import ModelContract, Tensor
from echolm.engines.openvino import OpenVINOOptions
from echolm.engines.options import read_options
from echolm.engines.tensorrt_llm import TensorRTLLMOptions
from echolm.engines.vllm import VLLMOptions
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"
CONFIGS = sorted(REPOSITORY.glob("*/*/config.pbtxt"))
NAMES = {path: f"{path.parents[1].name}/{path.parent.name}" for path in CONFIGS}
LLM_MODELS = ("small_llm", "large_llm")
EMBEDDING_DIMENSION = 384


def parse(path: Path) -> Any:
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def contract_of(name: str) -> ModelContract:
    if name in LLM_MODELS:
        return contracts.llm(name)
    known = {c.name: c for c in (*contracts.CORE_MODELS, contracts.EMBEDDER)}
    return known[name]


def tensors(entries: Any, with_optional: bool) -> dict[str, Tensor]:
    def datatype(value: int) -> str:
        name = str(model_config_pb2.DataType.Name(value)).removeprefix("TYPE_")
        return "BYTES" if name == "STRING" else name

    found = {
        e.name: Tensor(e.name, datatype(e.data_type), tuple(e.dims), with_optional and e.optional)
        for e in entries
    }
    assert len(found) == len(entries), "a tensor is there twice"
    return found


def test_the_core_models_are_all_there() -> None:
    assert {p.parent.name for p in CONFIGS if p.parents[1].name == "core"} == {
        c.name for c in contracts.CORE_MODELS
    }


@pytest.mark.parametrize("profile", sorted({p.parents[1].name for p in CONFIGS} - {"core"}))
def test_a_profile_has_an_embedder_and_both_llms(profile: str) -> None:
    models = {p.parent.name for p in CONFIGS if p.parents[1].name == profile}
    assert models == {"embedder", *LLM_MODELS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: NAMES[p])
def test_a_configuration_equals_its_contract(path: Path) -> None:
    config, contract = parse(path), contract_of(path.parent.name)
    assert config.name in ("", path.parent.name)
    assert tensors(config.input, True) == {t.name: t for t in contract.inputs}
    outputs = tensors(config.output, False)
    if config.backend == "onnxruntime":
        # This backend wants the model's own dimension where the contract leaves it open.
        (found,) = outputs.values()
        assert found.dims == (EMBEDDING_DIMENSION,)
        outputs = {found.name: dataclasses.replace(found, dims=contracts.EMBEDDING.dims)}
    assert outputs == {t.name: t for t in contract.outputs}
    assert config.max_batch_size == contract.max_batch_size
    assert config.model_transaction_policy.decoupled == contract.decoupled


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: NAMES[p])
def test_a_python_model_is_one_import(path: Path) -> None:
    if parse(path).backend != "python":
        pytest.skip("not a python model")
    [statement] = ast.parse((path.parent / "1" / "model.py").read_text()).body
    assert isinstance(statement, ast.ImportFrom)
    assert (statement.module or "").startswith("echolm.triton.")
    assert [name.name for name in statement.names] == ["TritonPythonModel"]


def test_the_ensemble_connects_its_steps_by_their_own_names() -> None:
    config = parse(REPOSITORY / "core" / "retrieval" / "config.pbtxt")
    known = {t.name for t in contracts.RETRIEVAL.inputs}
    for step in config.ensemble_scheduling.step:
        contract = contract_of(step.model_name)
        assert set(step.input_map) == {t.name for t in contract.inputs}
        assert set(step.output_map) == {t.name for t in contract.outputs}
        assert set(step.input_map.values()) <= known, "an input before the step that makes it"
        known |= set(step.output_map.values())
    assert {t.name for t in contracts.RETRIEVAL.outputs} <= known


@pytest.mark.parametrize("name", ["tokenizer", "retriever", "example_manager"])
def test_models_on_the_path_batch_requests(name: str) -> None:
    assert parse(REPOSITORY / "core" / name / "config.pbtxt").HasField("dynamic_batching")


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("*/*_llm/config.pbtxt")), ids=NAMES.get)
def test_the_parameters_of_an_llm_are_options_of_its_engine(path: Path) -> None:
    kinds = {"openvino": OpenVINOOptions, "vllm": VLLMOptions, "tensorrt_llm": TensorRTLLMOptions}
    given = {key: value.string_value for key, value in parse(path).parameters.items()}
    engine = given.pop("engine")
    given.pop("model_dir", None)
    read_options(kinds[engine], given, engine)
    assert engine == {"local": "openvino"}.get(path.parents[1].name, path.parents[1].name)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: NAMES[p])
def test_a_router_has_one_instance(path: Path) -> None:
    """Its load and its learning are per process; it never blocks, so one is enough."""
    if path.parent.name in ("echolm", "echolm_stream"):
        assert [g.count for g in parse(path).instance_group] == [1]


# NVIDIA/TensorRT-LLM, triton_backend/all_models/llmapi/tensorrt_llm
TENSORRT_LLM_INPUTS = {
    "text_input": ("BYTES", (-1,)),
    "streaming": ("BOOL", (1,)),
    "sampling_param_best_of": ("INT32", (1,)),
    "sampling_param_temperature": ("FP32", (1,)),
    "sampling_param_top_k": ("INT32", (1,)),
    "sampling_param_top_p": ("FP32", (1,)),
    "sampling_param_frequency_penalty": ("FP32", (1,)),
    "sampling_param_presence_penalty": ("FP32", (1,)),
    "sampling_param_max_tokens": ("INT32", (1,)),
    "sampling_param_stop": ("BYTES", (-1,)),
    "sampling_param_seed": ("UINT64", (1,)),
    "sampling_param_exclude_input_from_output": ("BOOL", (1,)),
    "sampling_param_return_perf_metrics": ("BOOL", (1,)),
    "return_finish_reason": ("BOOL", (1,)),
    "return_stop_reason": ("BOOL", (1,)),
    "return_cumulative_logprob": ("BOOL", (1,)),
    "stop": ("BOOL", (1,)),
    "lora_id": ("UINT64", (1,)),
    "lora_name": ("BYTES", (1,)),
    "lora_path": ("BYTES", (1,)),
    "lora_ckpt_source": ("BYTES", (1,)),
}
TENSORRT_LLM_OUTPUTS = {
    "text_output": ("BYTES", (-1,)),
    "finish_reason": ("BYTES", (-1,)),
    "stop_reason": ("BYTES", (-1,)),
    "cumulative_logprob": ("FP32", (-1,)),
}


def test_llms_speak_tensorrt_llms_contract() -> None:
    contract = contracts.llm("any")
    for tensor in contract.inputs:
        assert (tensor.datatype, tensor.dims) == TENSORRT_LLM_INPUTS[tensor.name]
        assert tensor.optional is (tensor.name != "text_input")
    ours = {t.name: (t.datatype, t.dims) for t in contract.outputs}
    extra = {t.name for t in contracts.TOKEN_COUNTS}
    assert {n: v for n, v in ours.items() if n not in extra} == TENSORRT_LLM_OUTPUTS
    assert contract.max_batch_size == 0
    assert contract.decoupled


def test_what_our_adapter_sends_is_in_the_contract() -> None:
    sent = {
        "text_input",
        "streaming",
        "sampling_param_max_tokens",
        "sampling_param_temperature",
        "sampling_param_top_p",
        "sampling_param_top_k",
        "sampling_param_seed",
        "sampling_param_stop",
        "sampling_param_exclude_input_from_output",
        "return_finish_reason",
        "stop",
    }
    assert sent <= set(TENSORRT_LLM_INPUTS)
    assert sent <= {t.name for t in contracts.LLM_API_INPUTS}


# NVIDIA/TensorRT-LLM, triton_backend/all_models/inflight_batcher_llm/ensemble
ENSEMBLE_INPUTS = {
    "text_input": "BYTES",
    "max_tokens": "INT32",
    "stop_words": "BYTES",
    "top_k": "INT32",
    "top_p": "FP32",
    "temperature": "FP32",
    "seed": "UINT64",
    "stream": "BOOL",
}


def test_the_public_model_keeps_the_names_of_tensorrt_llms_ensemble() -> None:
    ours = {t.name: t.datatype for t in contracts.ECHOLM.inputs}
    assert {name: ours.get(name) for name in ENSEMBLE_INPUTS} == ENSEMBLE_INPUTS
    assert [t.name for t in contracts.ECHOLM.inputs if not t.optional] == ["text_input"]
    assert contracts.ECHOLM.inputs == contracts.ECHOLM_STREAM.inputs
    assert contracts.ECHOLM.outputs == contracts.ECHOLM_STREAM.outputs
