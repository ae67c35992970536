"""From a question to a reply: loading, prompt formats, generation, votes and batches."""
