"""Measure how well a model answers; runs, scores and plots.

Public modules: `decisions`, `plot`, `runs` and `runs_command`, for labelled decisions.
"""
