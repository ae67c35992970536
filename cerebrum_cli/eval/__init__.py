"""Optional: measure how well a model answers; runs, lm-evaluation-harness, scores and plots.

Public modules: `presets`, `stored_runs` and `tasks`.
"""
