"""Prompts, and the interface to an LLM as the router sees it."""
