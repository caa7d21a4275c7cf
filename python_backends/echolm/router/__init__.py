"""A request's way from the client's inputs to its answer, and which LLM gives it."""
