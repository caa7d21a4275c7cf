"""What becomes an example, and how it gets into the store."""
