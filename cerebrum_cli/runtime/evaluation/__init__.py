"""`cerebrum eval` and `cerebrum runs`: joining evaluations with the terminal."""
