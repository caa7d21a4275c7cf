"""The contracts of LLM models on Triton that EchoLM speaks, by ``llms.contract``."""

from __future__ import annotations

from collections.abc import Mapping

from echolm.llm.inflight_batcher import InflightBatcherClient
from echolm.llm.llmapi import LLMAPIClient
from echolm.llm.triton_client import TritonLLM

CONTRACTS: Mapping[str, type[TritonLLM]] = {
    client.contract: client for client in (LLMAPIClient, InflightBatcherClient)
}
"""Clients by the contract that they speak."""
