"""Settings to objects: the only place that knows how the parts of EchoLM fit together.

Here nothing is decided and nothing computed; each function reads the settings that a part needs
and gives it its collaborators. What takes long to import or needs a package that not every
process uses (Milvus, Redis, Triton's client, the embedding runtime) is imported by the function
that builds it.
"""
