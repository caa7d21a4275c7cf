"""An LLM as the router sees it: its prompts, its tokens, and the contract that it speaks."""
