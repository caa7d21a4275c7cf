"""Where examples live."""
