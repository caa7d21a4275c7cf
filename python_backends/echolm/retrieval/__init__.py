"""The example store and the choice of examples for a request."""
