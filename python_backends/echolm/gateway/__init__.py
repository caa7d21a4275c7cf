"""The OpenAI-compatible front door: HTTP in front of Triton's ``echolm`` and ``echolm_stream``.

::

    protocol    connections: size of the head, slow clients, number of connections
    app         the routes; one handler an endpoint
    body        a body's size, type and shape, before anything is made of it
    requests    OpenAI's requests, and the inputs of ``echolm`` that they become
    responses   OpenAI's responses and the chunks of streams
    keys        API keys: who calls, and for which tenant
    rates       what a key has used of its limits
    memory      feedback tokens by the id of a response
    backend     what the gateway asks of Triton; ``triton`` asks it
    server      the processes
"""
