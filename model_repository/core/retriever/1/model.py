from echolm.triton.retriever_model import TritonPythonModel  # noqa: F401
