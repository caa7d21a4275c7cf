"""The edge to Triton: the only package that imports ``triton_python_backend_utils``."""
