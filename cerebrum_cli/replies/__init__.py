"""From a question to a reply: loading a model, prompts, generation, votes and many rows."""
