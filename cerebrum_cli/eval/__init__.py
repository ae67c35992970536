"""Optional: measure how well a model answers; runs, scores and plots.

Public modules: `extension`, its commands, and `plot`, `runs` and `runs_command`, runs of other packages.
"""
