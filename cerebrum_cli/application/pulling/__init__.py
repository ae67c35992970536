"""Download models, or build them from others by the catalogue's recipes."""
