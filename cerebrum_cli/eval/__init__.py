"""Values of an evaluation: questions, samples, estimates and comparisons; pure functions over them."""
