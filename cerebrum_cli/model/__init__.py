"""From a question to a reply: model loading, prompt formats, generation, votes and batches."""
