from echolm.triton.embedder_model import TritonPythonModel  # noqa: F401
