"""What a GGUF file holds: its header, its metadata and tensors, and their types and sizes."""
