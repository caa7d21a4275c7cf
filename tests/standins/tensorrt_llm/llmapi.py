from tensorrt_llm._llm import KvCacheConfig

__all__ = ["KvCacheConfig"]
