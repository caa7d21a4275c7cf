from echolm.triton.example_manager_model import TritonPythonModel  # noqa: F401
