"""The model ``remote_llm``: LLMs that another Triton serves (``llms.url``), as if this one did.

The front door calls models of its own server only. The contract is our LLM model's, and ``llm``
says which of the configured LLMs is meant.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

from echolm import contracts
from echolm.engines.request import LLMRequest, parse_request
from echolm.errors import CancelledError, InvalidRequestError
from echolm.llm.triton_client import TritonLLMClient
from echolm.primitives import Completion, decode
from echolm.settings.loading import load_settings
from echolm.triton import codec
from echolm.triton.responder import Responder
from echolm.triton.runtime import Runtime
from echolm.wiring.llms import build_llm_clients

_TEXT_OUTPUT = contracts.LLM_API_OUTPUTS[0]
_OUTPUTS = {spec.name: spec for spec in contracts.REMOTE_LLM.outputs}


class TritonPythonModel:
    """Passes requests on, and answers back; a client that goes away cancels its request there."""

    def initialize(self, args: dict[str, str]) -> None:
        settings = load_settings()
        self._runtime = Runtime(args["model_name"])
        clients = build_llm_clients(settings)
        self._clients = {llm.name: clients[llm.name] for llm in settings.llms if llm.url}
        self._keys = itertools.count(1)

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            responder = Responder(request)
            try:
                client, parsed = self._read(request)
            except Exception as problem:
                responder.fail(problem)
                continue
            self._runtime.spawn(self._answer(client, parsed, responder), responder)

    def _read(self, request: Any) -> tuple[TritonLLMClient, LLMRequest]:
        inputs = {
            spec.name: array.reshape(-1).tolist()
            for spec in contracts.REMOTE_LLM.inputs
            if (array := codec.read(request, spec.name)) is not None
        }
        name = decode(inputs.pop("llm")[0], "llm")
        if name not in self._clients:
            expected = f"one of {sorted(self._clients)}, which have an llms.url"
            raise InvalidRequestError.of("llm", expected, name)
        parameters = json.loads(request.parameters() or "{}")
        return self._clients[name], parse_request(f"r{next(self._keys)}", inputs, parameters)

    async def _answer(
        self, client: TritonLLMClient, request: LLMRequest, responder: Responder
    ) -> None:
        generation = request.generation

        def send_piece(piece: str) -> None:
            responder.send([codec.tensor(_TEXT_OUTPUT, [piece])])

        on_text = send_piece if generation.streaming else None
        try:
            completion = await client.generate(
                generation.request_id, generation.prompt, generation.sampling, on_text
            )
        except asyncio.CancelledError:
            responder.fail(CancelledError("the client went away"))
            raise
        except Exception as problem:
            responder.fail(problem)
            return
        responder.send(_outputs(completion, generation.streaming), final=True)

    def finalize(self) -> None:
        self._runtime.close()


def _outputs(completion: Completion, text_sent: bool) -> list[Any]:
    values: dict[str, Any] = {
        "text_output": "" if text_sent else completion.text,
        "finish_reason": completion.finish_reason,
        "num_input_tokens": completion.num_input_tokens,
        "num_output_tokens": completion.num_output_tokens,
    }
    if completion.cumulative_logprob is not None:
        values["cumulative_logprob"] = completion.cumulative_logprob
    tensors = [codec.tensor(_OUTPUTS[name], [value]) for name, value in values.items()]
    if completion.token_logprobs:
        tensors.append(codec.tensor(contracts.TOKEN_LOGPROBS, completion.token_logprobs))
    return tensors
