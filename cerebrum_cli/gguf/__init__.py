"""What a GGUF file holds: its header, its tensor tables and types, and the adapter to the `gguf` library."""
