"""Optional: merge models by a recipe, and convert safetensors to GGUF.

Public module: `extension`.
"""
