"""Run local GGUF reasoning models in a terminal, in the exact prompt format each was trained on."""

__version__ = "0.1.0"
