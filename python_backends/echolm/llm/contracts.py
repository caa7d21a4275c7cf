"""The table of contracts of LLM models on Triton that EchoLM speaks."""

from __future__ import annotations

from collections.abc import Mapping

from echolm.llm.inflight_batcher import InflightBatcherClient
from echolm.llm.llmapi import LLMAPIClient
from echolm.llm.triton_client import TritonLLMClient

CONTRACTS: Mapping[str, type[TritonLLMClient]] = {
    client.contract: client for client in (LLMAPIClient, InflightBatcherClient)
}
"""The client of each contract, by the name that the setting ``llms.contract`` gives it."""
