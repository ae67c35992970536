"""Text for prompts, from files, directories, patterns and standard input."""
