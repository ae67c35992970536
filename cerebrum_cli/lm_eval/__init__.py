"""lm-evaluation-harness on the engine."""
