"""The demo pair of LLMs as checkpoints: trained, evaluated, grown, made worse."""
