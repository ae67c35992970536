"""Prompt formats: a table of plain ones, and chat templates embedded in GGUF files."""
