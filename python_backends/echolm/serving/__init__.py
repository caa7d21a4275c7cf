"""Starting and stopping EchoLM's server processes on one machine."""

from echolm.serving.foreground import serve_forever
from echolm.serving.serve import Endpoints, ServeOptions, running_server

__all__ = ["Endpoints", "ServeOptions", "running_server", "serve_forever"]
