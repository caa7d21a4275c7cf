from echolm.triton.llm_model import TritonPythonModel  # noqa: F401
