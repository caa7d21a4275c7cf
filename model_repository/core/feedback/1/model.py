from echolm.triton.feedback_model import TritonPythonModel  # noqa: F401
