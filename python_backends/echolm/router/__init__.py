"""Which LLM answers a request, and the request's way from there to its answer."""
