"""The model catalog, the Hub, downloads, and the registry of installed models."""
