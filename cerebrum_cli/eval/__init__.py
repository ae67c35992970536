"""Optional: measure how well a model answers; runs, lm-evaluation-harness, scores and plots.

Public module: `extension`, its commands.
"""
