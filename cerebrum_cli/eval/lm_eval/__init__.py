"""lm-evaluation-harness on this engine: the model that it asks, and its tasks."""
