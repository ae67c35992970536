"""Measurements of speed and fidelity: `python -m benchmarks.all` runs them, and RESULTS.md has the figures."""
