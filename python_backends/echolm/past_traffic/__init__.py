"""Past traffic of other front doors: read, stored as examples, and replayed to learn from."""
