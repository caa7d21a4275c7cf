from echolm.triton.router_model import TritonPythonModel  # noqa: F401
