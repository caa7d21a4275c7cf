"""What only vLLM has: its options and the arguments that it gets.

The library is a stand-in; where the real one is installed, their signatures are compared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
from echolm.engines import create_engine
from echolm.engines.base import GenerationRequest
from echolm.engines.gpu import loading
from echolm.engines.options import read_options
from echolm.engines.vllm import VLLMOptions, engine_arguments, sampling_params
from echolm.errors import ConfigurationError, UnavailableError
from echolm.primitives import Sampling

STANDINS = Path(__file__).resolve().parents[2] / "standins"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gpu_memory_utilization": "1.5"}, r"expected a share in \(0, 1\], got 1.5"),
        ({"max_num_seqs": "0"}, "max_num_seqs: expected at least 1"),
        ({"max_model_len": "-1"}, "max_model_len: expected at least 0"),
    ],
)
def test_wrong_option_of_vllm_is_refused(values: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_options(VLLMOptions, values, "vllm")


def test_vllm_gets_its_arguments_by_its_own_names() -> None:
    options = VLLMOptions(quantization="fp8", max_model_len=4096, load_format="dummy", gpus="1")
    arguments = engine_arguments("/m", options)
    assert arguments["enable_prefix_caching"] is True
    assert {k: arguments[k] for k in ("model", "quantization", "max_model_len", "load_format")} == {
        "model": "/m",
        "quantization": "fp8",
        "max_model_len": 4096,
        "load_format": "dummy",
    }
    assert not {"gpus", "python", "max_num_batched_tokens", "tokenizer"} & set(arguments)
    assert options.environment == {"CUDA_VISIBLE_DEVICES": "1"}


def test_what_stands_in_for_an_option_that_is_off(standins: Path) -> None:
    greedy = sampling_params(GenerationRequest("1", "a"))
    assert (greedy.temperature, greedy.top_k, greedy.seed, greedy.logprobs) == (0, 0, None, None)
    assert greedy.output_kind.name == "FINAL_ONLY"
    sampling = Sampling(seed=2**64 - 1, logprobs=True)
    asked = sampling_params(GenerationRequest("1", "a", sampling, streaming=True))
    assert asked.logprobs == 0
    assert 0 <= asked.seed < 2**63
    assert asked.output_kind.name == "DELTA"


@pytest.mark.parametrize(
    ("guide_type", "guide", "field", "value"),
    [
        ("json", "", "json_object", True),
        ("json_schema", "{}", "json", "{}"),
        ("regex", "[0-9]", "regex", "[0-9]"),
        ("ebnf_grammar", "root ::= x", "grammar", "root ::= x"),
        ("structural_tag", "{}", "structural_tag", "{}"),
    ],
)
def test_bad_words_penalties_and_guides_have_vllms_names(
    standins: Path, guide_type: str, guide: str, field: str, value: Any
) -> None:
    sampling = Sampling(
        repetition_penalty=1.5,
        min_tokens=3,
        bad_words=("no", "never"),
        guide_type=guide_type,
        guide=guide,
    )
    asked = sampling_params(GenerationRequest("1", "a", sampling))
    assert (asked.repetition_penalty, asked.min_tokens) == (1.5, 3)
    assert asked.bad_words == ["no", "never"]
    given = {name: v for name, v in vars(asked.structured_outputs).items() if v is not None}
    assert given == {field: value}
    assert sampling_params(GenerationRequest("1", "a")).structured_outputs is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "half-ish"}, "vLLM refused it: dtype:.*Input should be"),
        ({"model": "no/such-model"}, "no/such-model does not appear to have a file named"),
    ],
)
def test_what_vllm_refuses_is_a_configuration_error(
    standins: Path, checkpoint: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        create_engine("vllm", checkpoint, options)


def test_arguments_without_an_option_reach_vllm(standins: Path, checkpoint: Path) -> None:
    create_engine("vllm", checkpoint, {"engine_args": '{"block_size": 32}'}).close()


def test_an_engine_that_need_not_measure_the_memory_waits_for_no_other(
    standins: Path, checkpoint: Path
) -> None:
    options = {"gpus": "13", "start_timeout_s": "60"}
    with loading("13"):
        create_engine("vllm", checkpoint, {**options, "kv_cache_memory_bytes": "1000"}).close()
        with pytest.raises(UnavailableError, match="expected its model loaded within 2 s"):
            create_engine("vllm", checkpoint, {**options, "start_timeout_s": "2"})


SIGNATURES = """
import dataclasses, inspect, json
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs import tokens_input
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
names = ("generate", "abort", "shutdown", "from_engine_args", "get_tokenizer")
found = {name: list(inspect.signature(getattr(AsyncLLM, name)).parameters) for name in names}
found["tokens_input"] = list(inspect.signature(tokens_input).parameters)
found["SamplingParams"] = list(inspect.signature(SamplingParams).parameters)
found["AsyncEngineArgs"] = [field.name for field in dataclasses.fields(AsyncEngineArgs)]
found["RequestOutputKind"] = [kind.name for kind in RequestOutputKind]
found["errored"] = [type(inspect.getattr_static(AsyncLLM, "errored")).__name__]
print(json.dumps(found))
"""


def test_the_stand_in_has_vllms_signatures() -> None:
    try:
        version("vllm")
    except PackageNotFoundError:
        pytest.skip("vLLM is not installed")
    found = []
    for path in ("", str(STANDINS)):
        run = subprocess.run(
            [sys.executable, "-c", SIGNATURES],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
            check=True,
        )
        found.append(json.loads(run.stdout.splitlines()[-1]))
    real, standin = found
    for name, parameters in standin.items():
        assert set(parameters) <= set(real[name]), name
