"""Models with the configurations of TensorRT-LLM's Triton models, and what they promise.

NVIDIA/TensorRT-LLM, ``triton_backend/all_models``: ``llmapi/tensorrt_llm`` and
``inflight_batcher_llm/ensemble``. In the place of their engines stands a python model that checks
what it gets and answers with words.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]

LLMAPI_INPUTS: Tensors = {
    "text_input": ("BYTES", (-1,)),
    "image_url": ("BYTES", (-1,)),
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
LLMAPI_OUTPUTS: Tensors = {
    "text_output": ("BYTES", (-1,)),
    "finish_reason": ("BYTES", (-1,)),
    "stop_reason": ("BYTES", (-1,)),
    "cumulative_logprob": ("FP32", (-1,)),
    "kv_cache_reused_block": ("INT32", (-1,)),
    "kv_cache_missed_block": ("INT32", (-1,)),
    "kv_cache_alloc_new_blocks": ("INT32", (-1,)),
    "kv_cache_alloc_total_blocks": ("INT32", (-1,)),
    "kv_cache_hit_rate": ("FP32", (-1,)),
    "arrival_time_ns": ("INT64", (1,)),
    "first_scheduled_time_ns": ("INT64", (1,)),
    "first_token_time_ns": ("INT64", (1,)),
    "last_token_time_ns": ("INT64", (1,)),
    "acceptance_rate": ("FP32", (1,)),
    "total_accepted_draft_tokens": ("INT32", (1,)),
    "total_draft_tokens": ("INT32", (1,)),
}
ENSEMBLE_INPUTS: Tensors = {
    "text_input": ("BYTES", (1,)),
    "decoder_text_input": ("BYTES", (1,)),
    "max_tokens": ("INT32", (1,)),
    "num_return_sequences": ("INT32", (1,)),
    "bad_words": ("BYTES", (-1,)),
    "stop_words": ("BYTES", (-1,)),
    "exclude_input_in_output": ("BOOL", (1,)),
    "end_id": ("INT32", (1,)),
    "pad_id": ("INT32", (1,)),
    "top_k": ("INT32", (1,)),
    "top_p": ("FP32", (1,)),
    "temperature": ("FP32", (1,)),
    "length_penalty": ("FP32", (1,)),
    "repetition_penalty": ("FP32", (1,)),
    "min_tokens": ("INT32", (1,)),
    "presence_penalty": ("FP32", (1,)),
    "frequency_penalty": ("FP32", (1,)),
    "seed": ("UINT64", (1,)),
    "return_log_probs": ("BOOL", (1,)),
    "return_context_logits": ("BOOL", (1,)),
    "return_generation_logits": ("BOOL", (1,)),
    "return_perf_metrics": ("BOOL", (1,)),
    "return_num_input_tokens": ("BOOL", (1,)),
    "return_num_output_tokens": ("BOOL", (1,)),
    "beam_width": ("INT32", (1,)),
    "stream": ("BOOL", (1,)),
    "prompt_embedding_table": ("FP16", (-1, -1)),
    "prompt_table_extra_id": ("UINT64", (1,)),
    "prompt_vocab_size": ("INT32", (1,)),
    "embedding_bias_words": ("BYTES", (-1,)),
    "embedding_bias_weights": ("FP32", (-1,)),
    "lora_task_id": ("UINT64", (1,)),
    "lora_weights": ("FP16", (-1, -1)),
    "lora_config": ("INT32", (-1, 3)),
    "guided_decoding_guide_type": ("BYTES", (1,)),
    "guided_decoding_guide": ("BYTES", (1,)),
}
ENSEMBLE_OUTPUTS: Tensors = {
    "text_output": ("BYTES", (-1,)),
    "cum_log_probs": ("FP32", (-1,)),
    "output_log_probs": ("FP32", (-1, -1)),
    "context_logits": ("FP32", (-1, -1)),
    "generation_logits": ("FP32", (-1, -1, -1)),
    "batch_index": ("INT32", (1,)),
    "sequence_index": ("INT32", (1,)),
    "kv_cache_alloc_new_blocks": ("INT32", (1,)),
    "kv_cache_reused_blocks": ("INT32", (1,)),
    "kv_cache_alloc_total_blocks": ("INT32", (1,)),
    "arrival_time_ns": ("INT64", (1,)),
    "first_scheduled_time_ns": ("INT64", (1,)),
    "first_token_time_ns": ("INT64", (1,)),
    "last_token_time_ns": ("INT64", (1,)),
    "acceptance_rate": ("FP32", (1,)),
    "total_accepted_draft_tokens": ("INT32", (1,)),
    "total_draft_tokens": ("INT32", (1,)),
    "num_input_tokens": ("INT32", (1,)),
    "num_output_tokens": ("INT32", (1,)),
}
BLS_INPUTS: Tensors = {
    **ENSEMBLE_INPUTS,
    "image_input": ("FP16", (-1, 3, -1, -1)),
    "image_bytes_input": ("UINT8", (-1, -1, -1, -1)),
    "image_url_input": ("BYTES", (1,)),
    "video_bytes_input": ("UINT8", (-1, -1, -1, -1)),
    "num_draft_tokens": ("INT32", (1,)),
    "use_draft_logits": ("BOOL", (1,)),
}
"""Of ``inflight_batcher_llm/tensorrt_llm_bls``, which NVIDIA's end-to-end client calls as well."""
EARLIER_INPUTS: Tensors = {"min_length": ("INT32", (1,)), "random_seed": ("UINT64", (1,))}
"""Of the ensemble of earlier releases; genai-perf still sends ``min_length``."""
COUNTS = ("return_num_input_tokens", "return_num_output_tokens")
"""Inputs that older releases of the ensemble do not have."""


def write_llmapi(directory: Path, decoupled: bool, log: Path) -> None:
    """The model directory ``llmapi/tensorrt_llm``.

    As there, ``config.pbtxt`` leaves decoupling to ``auto_complete_config``, and the batch
    dimension, too.
    """
    required = {"text_input"}
    config = _config(LLMAPI_INPUTS, LLMAPI_OUTPUTS, required)
    _write(directory, config, "LLMAPI", decoupled, log)


def write_ensemble(directory: Path, decoupled: bool, log: Path, counts: bool = True) -> None:
    """A model with the ensemble's tensors; ``counts``: whether the release tells them."""
    drop = () if counts else (*COUNTS, "num_input_tokens", "num_output_tokens")
    inputs = {name: spec for name, spec in ENSEMBLE_INPUTS.items() if name not in drop}
    outputs = {name: spec for name, spec in ENSEMBLE_OUTPUTS.items() if name not in drop}
    config = "max_batch_size: 8\n" + _config(inputs, outputs, {"text_input", "max_tokens"})
    if decoupled:
        config += "model_transaction_policy { decoupled: true }\n"
    _write(directory, config, "Ensemble", decoupled, log)


def _config(inputs: Tensors, outputs: Tensors, required: set[str]) -> str:
    def entry(name: str, spec: tuple[str, tuple[int, ...]], optional: bool) -> str:
        kind = "STRING" if spec[0] == "BYTES" else spec[0]
        dims = ", ".join(map(str, spec[1]))
        more = " optional: true" if optional else ""
        return f'{{ name: "{name}" data_type: TYPE_{kind} dims: [ {dims} ]{more} }}'

    ins = ",\n".join(entry(name, spec, name not in required) for name, spec in inputs.items())
    outs = ",\n".join(entry(name, spec, False) for name, spec in outputs.items())
    return (
        f'backend: "python"\ninput [\n{ins}\n]\noutput [\n{outs}\n]\n'
        "instance_group [ { kind: KIND_CPU count: 1 } ]\n"
    )


def _write(directory: Path, config: str, kind: str, decoupled: bool, log: Path) -> None:
    (directory / "1").mkdir(parents=True)
    (directory / "config.pbtxt").write_text(config)
    tensors: dict[str, Any] = LLMAPI_INPUTS if kind == "LLMAPI" else ENSEMBLE_INPUTS  # type: ignore[assignment]
    (directory / "1" / "model.py").write_text(
        MODEL.replace("KIND", kind)
        .replace("DECOUPLED", repr(decoupled))
        .replace("LOG", repr(str(log)))
        .replace("INPUTS", repr(dict(tensors)))
    )


MODEL = '''
import json
import threading
import time

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
WORDS = "alpha beta gamma delta epsilon zeta eta theta".split()
TYPES = {"BYTES": np.object_, "BOOL": np.bool_, "INT32": np.int32, "FP32": np.float32,
         "UINT64": np.uint64}


def note(entry):
    with open(LOG, "a") as file:
        file.write(json.dumps(entry) + "\\n")


def tensor(name, values, kind, batched):
    values = np.array(values, dtype=kind)
    return pb_utils.Tensor(name, values[None] if batched else values)


class Base:
    """Prompts: TOO-LONG and FAIL end in an error, FAIL-LATE after a piece; SLOWLY takes a second
    a word; RAMBLE never ends by itself."""

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            threading.Thread(target=self.serve, args=(request, sender)).start()
        return None

    def serve(self, request, sender):
        try:
            self.answer(request, sender, self.read(request))
        except Exception as error:
            problem = pb_utils.TritonError("Error generating request: %s" % error)
            sender.send(pb_utils.InferenceResponse(error=problem), flags=FINAL)

    def read(self, request):
        given = {}
        for name, (kind, dims) in INPUTS.items():
            got = pb_utils.get_input_tensor_by_name(request, name)
            if got is None:
                continue
            array = got.as_numpy()
            shape = array.shape
            if self.batched:
                assert shape[0] == 1, "%s: batch of %s" % (name, shape)
                array, shape = array[0], shape[1:]
            assert len(shape) == 1 and dims[0] in (-1, shape[0]), "%s: %s" % (name, shape)
            assert array.dtype == TYPES[kind], "%s: %s" % (name, array.dtype)
            values = [v.decode() if isinstance(v, bytes) else v for v in array.tolist()]
            given[name] = values if dims[0] == -1 and name != "text_input" else values[0]
        note({"model": self.name, "given": given, "id": request.request_id()})
        return given

    def initialize(self, args):
        self.name = args["model_name"]

    def words(self, prompt):
        """The user's words are the prompt's; which is all that a test has to know."""
        if "TOO-LONG" in prompt:
            raise ValueError("The sum of prompt length (9.0), query length (0) should not exceed "
                             "max_num_tokens (8)")
        if "FAIL" in prompt and "FAIL-LATE" not in prompt:
            raise ValueError("out of luck")
        slow = "SLOWLY" in prompt
        endless = slow or "RAMBLE" in prompt
        for n, word in enumerate(WORDS * 1000 if endless else WORDS):
            if n == 2 and "FAIL-LATE" in prompt:
                raise ValueError("out of luck")
            time.sleep(0.2 if slow else 0.005)
            yield word


class LLMAPI(Base):
    batched = False

    @classmethod
    def auto_complete_config(cls, config):
        config.set_model_transaction_policy({"decoupled": DECOUPLED})
        config.set_max_batch_size(0)
        return config

    def answer(self, request, sender, given):
        streaming = given.get("streaming", False)
        if streaming and not DECOUPLED:
            raise ValueError("Streaming is only supported in decoupled mode.")
        if "sampling_param_stop" in given:
            raise TypeError("TextEncodeInput must be a str, not bytes")
        text, count, reason = "", 0, None
        for word in self.words(given["text_input"]):
            if sender.is_cancelled():
                note({"model": self.name, "cancelled": request.request_id()})
                problem = pb_utils.TritonError("Request cancelled by client",
                                               pb_utils.TritonError.CANCELLED)
                sender.send(pb_utils.InferenceResponse(error=problem), flags=FINAL)
                return
            text, count = (text + " " + word).strip(), count + 1
            if count == given["sampling_param_max_tokens"]:
                reason = "length"
                break
            if streaming:
                sender.send(self.response(given, text, None))
        sender.send(self.response(given, text, reason or "stop"), flags=FINAL)

    def response(self, given, text, reason):
        tensors = [tensor("text_output", [text.encode()], np.object_, False)]
        if given.get("return_finish_reason"):
            tensors.append(tensor("finish_reason", [str(reason)], np.object_, False))
        return pb_utils.InferenceResponse(tensors)


class Ensemble(Base):
    batched = True

    def answer(self, request, sender, given):
        streaming = given.get("stream", False)
        if streaming and not DECOUPLED:
            raise ValueError("Streaming is only supported in decoupled mode.")
        assert given.get("beam_width", 1) == 1
        assert given["exclude_input_in_output"] is True
        pieces, count = [], 0
        for word in self.words(given["text_input"]):
            if sender.is_cancelled():
                note({"model": self.name, "cancelled": request.request_id()})
                sender.send(flags=FINAL) if DECOUPLED else sender.send(
                    self.response(given, "", 0), flags=FINAL)
                return
            pieces.append(word if count == 0 else " " + word)
            count += 1
            if streaming:
                sender.send(self.response(given, pieces[-1], 1))
            # A stop word is part of the text.
            if count == given["max_tokens"] or word in given.get("stop_words", []):
                break
        if streaming:
            sender.send(flags=FINAL)
        else:
            sender.send(self.response(given, "".join(pieces), count), flags=FINAL)

    def response(self, given, text, count):
        tensors = [pb_utils.Tensor("text_output", np.array([text.encode()], dtype=np.object_))]
        if given.get("return_num_input_tokens"):
            length = len(given["text_input"].split())
            tensors.append(tensor("num_input_tokens", [length], np.int32, True))
        if given.get("return_num_output_tokens"):
            tensors.append(tensor("num_output_tokens", [count], np.int32, True))
        return pb_utils.InferenceResponse(tensors)


TritonPythonModel = KIND
'''
