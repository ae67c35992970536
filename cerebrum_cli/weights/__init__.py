"""Merge models by a recipe, and convert safetensors to GGUF.

Public module: `building`, what `pull` needs.
"""
