"""An environment for gymrl, found through the entry point in pyproject.toml."""
