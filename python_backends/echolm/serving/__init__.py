"""Starting and stopping EchoLM's server processes on one machine."""

from echolm.serving.serve import Endpoints, ServeOptions, running_server, serve_forever

__all__ = ["Endpoints", "ServeOptions", "running_server", "serve_forever"]
