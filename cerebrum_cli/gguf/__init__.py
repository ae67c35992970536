"""Contents of a GGUF file: its header, its metadata and tensors, and their types and sizes."""
