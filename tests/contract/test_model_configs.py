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
from echolm.llm.contracts import CONTRACTS
from echolm.llm.inflight_batcher import InflightBatcherClient
from echolm.llm.llmapi import LLMAPIClient, RemoteLLM
from echolm.llm.optional_inputs import optional_inputs
from echolm.primitives import Sampling
from echolm.settings import LLMSettings
from generate_configs import contract_of, renewed
from google.protobuf import text_format
from nvidia_llms import (
    BLS_INPUTS,
    EARLIER_INPUTS,
    ENSEMBLE_INPUTS,
    ENSEMBLE_OUTPUTS,
    LLMAPI_INPUTS,
    LLMAPI_OUTPUTS,
    write_ensemble,
    write_llmapi,
)
from tritonclient.grpc import model_config_pb2

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"
CONFIGS = sorted(REPOSITORY.glob("*/*/config.pbtxt"))
NAMES = {path: f"{path.parents[1].name}/{path.parent.name}" for path in CONFIGS}
LLM_MODELS = ("small_llm", "large_llm")
EMBEDDING_DIMENSION = 384


def parse(path: Path) -> Any:
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def tensors(entries: Any, with_flags: bool) -> dict[str, Tensor]:
    def datatype(value: int) -> str:
        name = str(model_config_pb2.DataType.Name(value)).removeprefix("TYPE_")
        return "BYTES" if name == "STRING" else name

    found = {
        e.name: Tensor(
            e.name,
            datatype(e.data_type),
            tuple(e.dims),
            with_flags and e.optional,
            with_flags and e.allow_ragged_batch,
        )
        for e in entries
    }
    assert len(found) == len(entries), "a tensor is there twice"
    return found


def test_the_core_models_are_all_there() -> None:
    assert {p.parent.name for p in CONFIGS if p.parents[1].name == "core"} == {
        c.name for c in contracts.CORE_MODELS
    }


@pytest.mark.parametrize("profile", sorted({p.parents[1].name for p in CONFIGS} - {"core"}))
def test_a_profile_has_an_embedder_and_both_llms_unless_they_are_elsewhere(profile: str) -> None:
    models = {p.parent.name for p in CONFIGS if p.parents[1].name == profile}
    assert models == {"embedder", *(() if profile == "remote" else LLM_MODELS)}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: NAMES[p])
def test_a_configuration_is_what_the_generator_writes(path: Path) -> None:
    text = path.read_text()
    if parse(path).backend == "onnxruntime":  # Its dimension is its model's own.
        assert renewed(text, contract_of(path)) is None
    else:
        assert renewed(text, contract_of(path)) == text


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: NAMES[p])
def test_a_configuration_equals_its_contract(path: Path) -> None:
    config, contract = parse(path), contract_of(path)
    assert config.name in ("", path.parent.name)
    inputs = {t.name: t for t in contract.inputs}
    if config.backend == "onnxruntime":
        # This backend batches only what has the same length.
        inputs = {n: dataclasses.replace(t, ragged=False) for n, t in inputs.items()}
    assert tensors(config.input, True) == inputs
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


NOT_IN_THE_ENSEMBLE = {"report", "retrieval_degraded"}
"""Inputs of the router that only the front door sends, to the router alone."""


def model_config_of(core_model: str) -> Path:
    folder = "local" if core_model == "embedder" else "core"
    return REPOSITORY / folder / core_model / "config.pbtxt"


@pytest.mark.parametrize("ensemble", [contracts.SELECTION, contracts.TEXT_EMBEDDING])
def test_an_ensemble_connects_its_steps_by_their_own_names(ensemble: ModelContract) -> None:
    config = parse(REPOSITORY / "core" / ensemble.name / "config.pbtxt")
    known = {t.name for t in ensemble.inputs}
    for step in config.ensemble_scheduling.step:
        contract = contract_of(model_config_of(step.model_name))
        taken = {t.name for t in contract.inputs if t.name in known or not t.optional}
        assert set(step.input_map) == taken - NOT_IN_THE_ENSEMBLE
        assert set(step.output_map) == {t.name for t in contract.outputs}
        assert all(key == value for key, value in step.input_map.items())
        assert set(step.input_map.values()) <= known, "an input before the step that makes it"
        assert not known & set(step.output_map.values()), "Triton gives an empty tensor then"
        known |= set(step.output_map.values())
    assert {t.name for t in ensemble.outputs} <= known


def test_the_selection_is_four_steps_and_carries_no_example_texts_out() -> None:
    config = parse(REPOSITORY / "core" / "selection" / "config.pbtxt")
    steps = [step.model_name for step in config.ensemble_scheduling.step]
    assert steps == ["tokenizer", "embedder", "retriever", "router"]
    assert contracts.RETRIEVED not in contracts.SELECTION.outputs


@pytest.mark.parametrize(
    "name", ["echolm", "echolm_stream", "tokenizer", "retriever", "router", "example_manager"]
)
def test_models_on_the_path_batch_requests(name: str) -> None:
    assert parse(REPOSITORY / "core" / name / "config.pbtxt").HasField("dynamic_batching")


@pytest.mark.parametrize("path", [p for p in CONFIGS if p.parent.name in LLM_MODELS], ids=NAMES.get)
def test_the_parameters_of_an_llm_are_options_of_its_engine(path: Path) -> None:
    kinds = {"openvino": OpenVINOOptions, "vllm": VLLMOptions, "tensorrt_llm": TensorRTLLMOptions}
    given = {key: value.string_value for key, value in parse(path).parameters.items()}
    engine = given.pop("engine")
    given.pop("model_dir", None)
    read_options(kinds[engine], given, engine)
    assert engine == {"local": "openvino"}.get(path.parents[1].name, path.parents[1].name)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: NAMES[p])
def test_a_router_has_one_instance(path: Path) -> None:
    """Plans and reports of a request meet in one process; it never blocks, so one is enough."""
    if path.parent.name in ("echolm", "echolm_stream", "router"):
        assert [g.count for g in parse(path).instance_group] == [1]


def test_llms_speak_tensorrt_llms_contract() -> None:
    contract = contracts.llm("any")
    for tensor in contracts.LLM_API_INPUTS:
        assert (tensor.datatype, tensor.dims) == LLMAPI_INPUTS[tensor.name]
    for tensor in contract.inputs:
        assert tensor.optional is (tensor.name != "text_input")
    assert not {tensor.name for tensor in contracts.LLM_API_EXTENSIONS} & set(LLMAPI_INPUTS)
    ours = {t.name: (t.datatype, t.dims) for t in contract.outputs}
    extra = {t.name for t in (*contracts.TOKEN_COUNTS, *contracts.LOG_PROBS)}
    theirs = {name: LLMAPI_OUTPUTS[name] for name in ours if name not in extra}
    assert {n: v for n, v in ours.items() if n not in extra} == theirs
    assert contract.max_batch_size == 0
    assert contract.decoupled


def test_our_llms_add_to_it_what_the_ensemble_takes_under_names_that_it_does_not_use() -> None:
    added = {t.name: (t.datatype, t.dims) for t in contracts.ALL_LLM_API_INPUTS}
    added = {name: spec for name, spec in added.items() if name not in LLMAPI_INPUTS}
    names = [t.name for t in (*contracts.LLM_API_EXTENSIONS, *contracts.ENGINE_EXTENSIONS["vllm"])]
    assert set(added) == set(names)
    # The ensemble has that one in the configuration of its step of preprocessing.
    assert added.pop("sampling_param_add_special_tokens") == ("BOOL", (1,))
    # OpenAI's, not the ensemble's.
    assert added.pop("logprobs") == ("INT32", (1,))
    for name, spec in added.items():
        assert spec == ENSEMBLE_INPUTS[name.removeprefix("sampling_param_")]


def test_what_the_adapters_send_is_in_nvidias_configurations() -> None:
    for client, ours, theirs in (
        (LLMAPIClient, contracts.LLM_API_INPUTS, LLMAPI_INPUTS),
        (InflightBatcherClient, contracts.INFLIGHT_BATCHER_INPUTS, ENSEMBLE_INPUTS),
    ):
        for tensor in ours:
            assert client.inputs[tensor.name] == tensor
            assert (tensor.datatype, tensor.dims) == theirs[tensor.name]


def test_an_optional_input_reaches_each_contract_under_a_name_that_it_has() -> None:
    everything = Sampling(
        frequency_penalty=1.0,
        presence_penalty=1.0,
        repetition_penalty=2.0,
        min_tokens=1,
        bad_words=("a",),
        embedding_bias=(("b", 1.0),),
        guide_type="regex",
        guide="c",
        logprobs=True,
        top_logprobs=1,
        tools="[1]",
        tool_choice="2",
        response_format="3",
    )
    asked = optional_inputs(everything)
    openais = {t.name for t in contracts.OPENAI_INPUTS} - {"response_format"}  # a guide, too
    assert set(asked) - set(ENSEMBLE_INPUTS) == openais
    default = vars(Sampling())
    usual = {"max_tokens", "temperature", "top_p", "top_k", "seed", "stop"}
    changed = {name for name, value in vars(everything).items() if value != default[name]}
    assert changed == default.keys() - usual
    channels: Any = None
    assert not RemoteLLM(channels, "", "").lacks(everything), "as far as is known"
    assert set(InflightBatcherClient(channels, "", "").lacks(everything)) == openais
    for name in asked:
        assert RemoteLLM(channels, "", "").tensor_of(name) in RemoteLLM.inputs
    assert set(LLMAPIClient(channels, "", "").lacks(everything)) == {
        "embedding_bias_words",
        "embedding_bias_weights",
        *(openais - {"logprobs"}),
    }


def test_the_setting_takes_the_names_of_all_contracts() -> None:
    for name in CONTRACTS:
        assert LLMSettings(name="a", cost=1, takes_examples=False, contract=name).contract == name


def test_the_public_model_keeps_the_names_of_tensorrt_llms_ensemble() -> None:
    ours = {t.name: (t.datatype, t.dims) for t in contracts.ECHOLM.inputs}
    for name, (datatype, dims) in {**BLS_INPUTS, **EARLIER_INPUTS}.items():
        assert ours[name] == (datatype, dims), name
    own = {"messages", "system_prompt", "tenant", "cache_control", "llm", "cost_weight"}
    own |= {t.name for t in contracts.OPENAI_INPUTS}
    assert own == set(ours) - BLS_INPUTS.keys() - EARLIER_INPUTS.keys()
    outputs = {t.name: (t.datatype, t.dims) for t in contracts.ECHOLM.outputs}
    for name in ("cum_log_probs", "output_log_probs", "num_input_tokens", "num_output_tokens"):
        assert outputs[name] == ENSEMBLE_OUTPUTS[name]
    # A request has text_input or messages, so neither is required by itself.
    assert all(t.optional for t in contracts.ECHOLM.inputs)
    assert contracts.ECHOLM.inputs == contracts.ECHOLM_STREAM.inputs
    assert contracts.ECHOLM.outputs == contracts.ECHOLM_STREAM.outputs


@pytest.mark.parametrize("write", [write_llmapi, write_ensemble])
@pytest.mark.parametrize("decoupled", [False, True])
def test_the_stand_ins_of_nvidias_models_have_configurations_that_parse(
    tmp_path: Path, write: Any, decoupled: bool
) -> None:
    write(tmp_path / "model", decoupled, tmp_path / "log")
    config = parse(tmp_path / "model" / "config.pbtxt")
    theirs = LLMAPI_INPUTS if write is write_llmapi else ENSEMBLE_INPUTS
    assert {n: (t.datatype, t.dims) for n, t in tensors(config.input, True).items()} == theirs
    ast.parse((tmp_path / "model" / "1" / "model.py").read_text())
