"""One experiment a module, each with a function ``run(bench) -> Outcome``."""
