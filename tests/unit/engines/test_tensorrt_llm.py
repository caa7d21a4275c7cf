"""What only TensorRT-LLM has: its options, the arguments that it gets, and the two backends.

The library is a stand-in: it cannot be installed without a GPU.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from echolm.engines import create_engine
from echolm.engines.base import GenerationRequest
from echolm.engines.options import read_options
from echolm.engines.tensorrt_llm import (
    TensorRTLLMOptions,
    cache_bytes,
    gpu_memory,
    sampling_params,
)
from echolm.errors import ConfigurationError
from echolm.primitives import Sampling


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An nvidia-smi for two GPUs, of 80 and 40 GiB."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\ncase "$*" in *--id=0*) echo 81920;; *--id=9*) echo No devices;; '
        "*) echo 81920; echo 40960;; esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/bin:/usr/bin")
    return program


def arguments_with(checkpoint: Path, **options: str) -> dict[str, Any]:
    """What the library was made with."""
    create_engine("tensorrt_llm", checkpoint, options).close()
    arguments: dict[str, Any] = json.loads((checkpoint / "arguments.json").read_text())
    return arguments


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gpu_memory_share": "1.5"}, r"expected a share in \[0, 1\], got 1.5"),
        ({"max_batch_size": "0"}, "max_batch_size: expected at least 1"),
        ({"max_seq_len": "-1"}, "max_seq_len: expected at least 0"),
    ],
)
def test_wrong_option_of_tensorrt_llm_is_refused(values: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_options(TensorRTLLMOptions, values, "tensorrt_llm")


def test_a_checkpoint_is_run_by_pytorch_with_block_reuse(standins: Path, checkpoint: Path) -> None:
    arguments = arguments_with(
        checkpoint, max_seq_len="256", load_format="dummy", kv_cache_dtype="fp8"
    )
    assert arguments["backend"] == "LLM"
    assert (arguments["max_seq_len"], arguments["max_batch_size"], arguments["load_format"]) == (
        256,
        256,
        "dummy",
    )
    cache = arguments["kv_cache_config"]
    assert (cache["enable_block_reuse"], cache["dtype"]) == (True, "fp8")
    assert cache["max_gpu_total_bytes"] == 0


def test_a_built_engine_is_run_by_tensorrt(standins: Path, checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text('{"build_config": {"max_seq_len": 300}}')
    arguments = arguments_with(checkpoint)
    assert arguments["backend"] == "TrtLLM"
    assert "load_format" not in arguments


def test_a_share_of_the_memory_limits_the_cache(
    standins: Path, checkpoint: Path, nvidia_smi: Path
) -> None:
    (checkpoint / "model.safetensors").write_bytes(b"0" * (4 << 20))
    arguments = arguments_with(checkpoint, gpu_memory_share="0.5", gpus="0")
    limit = arguments["kv_cache_config"]["max_gpu_total_bytes"]
    assert limit == int((80 << 30) * 0.5 * 0.9) - (4 << 20)


def test_weights_are_shared_by_the_gpus(checkpoint: Path, nvidia_smi: Path) -> None:
    (checkpoint / "model.safetensors").write_bytes(b"0" * (8 << 20))
    options = TensorRTLLMOptions(gpu_memory_share=0.5, tensor_parallel_size=2)
    assert cache_bytes(str(checkpoint), options) == int((40 << 30) * 0.5 * 0.9) - (4 << 20)


def test_a_share_that_the_weights_exceed_is_refused(checkpoint: Path, nvidia_smi: Path) -> None:
    with open(checkpoint / "model.safetensors", "wb") as file:
        file.truncate(50 << 30)  # sparse
    options = TensorRTLLMOptions(gpu_memory_share=0.5, gpus="0")
    with pytest.raises(ConfigurationError, match=r"weights of 51200 MiB .* got 0.5 of 81920 MiB"):
        cache_bytes(str(checkpoint), options)


def test_a_gpu_that_is_not_there_is_refused(nvidia_smi: Path) -> None:
    assert gpu_memory("") == 40 << 30
    with pytest.raises(ConfigurationError, match="expected nvidia-smi to tell the memory"):
        gpu_memory("9")
    nvidia_smi.unlink()
    with pytest.raises(ConfigurationError, match="expected nvidia-smi to tell the memory"):
        gpu_memory("")


def test_a_context_length_that_is_nowhere_is_asked_for(standins: Path, checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="set the option max_seq_len"):
        create_engine("tensorrt_llm", checkpoint)


def test_the_mpi_job_of_triton_is_left_behind(
    standins: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMPI_COMM_WORLD_RANK", "OMPI_MCA_btl", "PMIX_RANK", "PMIX_MCA_gds"):
        monkeypatch.setenv(name, "1")
    assert arguments_with(checkpoint)["mpi"] == ["OMPI_MCA_btl", "PMIX_MCA_gds"]


def test_greedy_needs_no_temperature_and_sampling_no_fixed_seed(standins: Path) -> None:
    def params(**sampling: Any) -> Any:
        return sampling_params(GenerationRequest("1", "a", Sampling(**sampling)))

    greedy = params(temperature=0, top_p=0.5, top_k=9)
    assert (greedy.temperature, greedy.top_p, greedy.top_k) == (None, None, 1)
    sampled = [params(temperature=0.8) for _ in range(2)]
    assert sampled[0].seed != sampled[1].seed
    assert (sampled[0].temperature, sampled[0].top_p, sampled[0].top_k) == (0.8, 1.0, None)
    assert sampled[0].stop is None
    seeded = params(temperature=1, top_k=3, seed=5, logprobs=True)
    assert (seeded.top_k, seeded.seed, seeded.logprobs) == (3, 5, 1)


def test_penalties_and_bad_words_have_the_librarys_names(standins: Path) -> None:
    sampling = Sampling(repetition_penalty=1.5, min_tokens=3, bad_words=("no",))
    asked = sampling_params(GenerationRequest("1", "a", sampling))
    assert (asked.repetition_penalty, asked.min_tokens, asked.bad) == (1.5, 3, ["no"])
    plain = sampling_params(GenerationRequest("1", "a"))
    assert (plain.repetition_penalty, plain.min_tokens, plain.bad) == (None, None, None)
