"""The demo pair of LLMs as checkpoints: trained, exported, grown, made worse."""
