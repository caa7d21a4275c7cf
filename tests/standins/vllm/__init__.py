"""A stand-in of vLLM 0.20: the classes that ``echolm.engines.vllm`` uses, with their signatures
and what they promise, over a model of words."""
