"""Text to unit vectors: tokenizer, embedder, and the build of the default model.

``minilm`` and ``onnx_graph`` are for building only, which ``echolm serve`` does once, and are not
imported here; they need ``onnx`` and ``safetensors``, which a running model does not.
"""

from echolm.embedding.embedder import OnnxEmbedder
from echolm.embedding.spec import EmbedderSpec
from echolm.embedding.tokenizer import TextTokenizer

__all__ = ["EmbedderSpec", "OnnxEmbedder", "TextTokenizer"]
