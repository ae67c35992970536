"""Find the final answer in a chain of thought, and let several chains vote; pure functions over strings."""
