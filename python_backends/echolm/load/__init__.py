"""The serving load: counted, shared by processes, and what it takes off a score."""
