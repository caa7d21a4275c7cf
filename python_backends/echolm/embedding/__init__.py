"""Text to unit vectors: tokenizer, embedder, and the build of the default model.

``minilm`` and ``onnx_graph`` are for building only and are not imported here; they need
``onnx`` and ``safetensors``, which a server does not.
"""

from echolm.embedding.embedder import Embedder, OnnxEmbedder
from echolm.embedding.fake import FakeEmbedder
from echolm.embedding.spec import EmbedderSpec
from echolm.embedding.tokenizer import TextTokenizer, TokenBatch

__all__ = [
    "Embedder",
    "EmbedderSpec",
    "FakeEmbedder",
    "OnnxEmbedder",
    "TextTokenizer",
    "TokenBatch",
]
