"""Find the final answer in a chain of thought, and its normal form; pure functions over strings."""
