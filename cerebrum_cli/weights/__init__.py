"""Optional: merge models by a recipe, and convert safetensors to GGUF.

Public modules: `building`, `checkpoints.checkpoint` and `checkpoints.safetensors`.
"""
