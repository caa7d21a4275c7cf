from tensorrt_llm import _llm

LLM = _llm.TrtLLM
