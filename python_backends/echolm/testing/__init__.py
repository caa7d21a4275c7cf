"""Fakes of EchoLM's own interfaces, for unit tests and simulations."""
