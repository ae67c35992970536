"""GGUF layer merges: recipe, pure plan, streaming I/O."""
