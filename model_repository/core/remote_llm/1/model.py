from echolm.triton.remote_llm_model import TritonPythonModel  # noqa: F401
