"""Optional: check the whole installation, or servers."""
