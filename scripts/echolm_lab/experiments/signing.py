"""Calls of EchoLM's inner models, which a measurement makes in EchoLM's place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tritonclient.grpc.aio as grpc_aio
from echolm.internal_calls import ASKED, PROOF, SELECTION
from echolm.serving.attach import running_settings
from echolm.wiring.internal_calls import build_call_proofs


class SigningClient(grpc_aio.InferenceServerClient):  # type: ignore[misc]
    """Signs what it asks, as the front door does; with the key of a server on this machine.

    Args:
        data_dir: of the server.
    """

    def __init__(self, url: str, data_dir: Path) -> None:
        super().__init__(url)
        self._proofs = build_call_proofs(running_settings(data_dir))

    async def infer(self, model_name: str, inputs: Any, **options: Any) -> Any:
        asked = {i.name(): i._get_content() for i in inputs if i.name() in ASKED}
        parameters = {PROOF: self._proofs.sign(SELECTION, asked)}
        return await super().infer(model_name, inputs, parameters=parameters, **options)
