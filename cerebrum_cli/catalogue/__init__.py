"""Which models exist, which are here, how they get here, and what a file says of itself."""
