"""A stand-in of TensorRT-LLM 1.x: the classes that ``echolm.engines.tensorrt_llm`` uses, with
their signatures and what they promise, over a model of words."""

from tensorrt_llm._llm import LLM, SamplingParams

__all__ = ["LLM", "SamplingParams"]
