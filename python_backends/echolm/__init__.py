"""EchoLM: one logical LLM served from Triton by a small and a large LLM.

Packages, from the outside in; none imports from one above it:

``cli/``        the command ``echolm``, a file for each verb
``serving/``    starts Milvus Lite and Triton on one machine
``triton/``     the only package that imports ``triton_python_backend_utils``
``wiring/``     makes the objects from the settings
``examples/``   what becomes an example, and how long it stays one
``router/``     the request's life from its check to the answer
``judges/``     who rates answers besides the callers
``bandit/``     which LLM answers
``retrieval/``  which examples go into the prompt
``store/``, ``embedding/``, ``llm/``, ``engines/``, ``load/``, ``learning/``
                Milvus, text to vectors, calls to LLMs, our own LLM model, load, the event log
``settings/``   what may be configured, checked once
"""

__version__ = "0.1.0"
