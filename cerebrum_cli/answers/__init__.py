"""Find the final answer in a chain of thought, and count majority votes; pure functions over strings."""
