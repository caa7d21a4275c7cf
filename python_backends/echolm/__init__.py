"""EchoLM: one logical LLM served from Triton by a small and a large LLM.

Layers, from the outside in:

``triton/``     the only package that imports ``triton_python_backend_utils``
``serving/``    starts Milvus Lite and Triton on one machine (``echolm serve``)
``routing/``    which LLM answers, and the request's life from there to the answer
``retrieval/``  example store and example selection
``embedding/``  text to unit vectors
``generation/`` prompts and the interface to an LLM
``engines/``    LLM engines behind our own LLM model
``examples/``   what becomes an example
``learning/``   ratings: tokens, event log
``workload/``   the demo workload and its exact grader
"""

__version__ = "0.1.0"
