"""Optional: measure how well a model answers; runs, scores and plots.

Public modules: `extension`, its commands, and `recorded`, runs of other packages.
"""
