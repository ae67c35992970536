"""Merge GGUF models: parse a recipe, plan the merge (pure), write it in a stream."""
