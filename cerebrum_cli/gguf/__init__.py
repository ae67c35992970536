"""Contents of a GGUF file: its header, its metadata and tensors, and what the model needs in memory.

Public modules: `header`, `contents` and `sizes`.
"""
