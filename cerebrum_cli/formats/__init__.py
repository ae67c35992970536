"""How a model family writes a conversation: rows of data, and templates embedded in GGUF files."""
