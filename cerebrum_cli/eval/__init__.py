"""Optional: measure how well a model answers; runs, lm-evaluation-harness, scores and plots.

Public modules: `extension`, its commands, and `recorded`, runs of other packages.
"""
