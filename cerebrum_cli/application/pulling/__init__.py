"""Download models, or merge them by the catalog's recipes."""
