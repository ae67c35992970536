"""Measuring how well a model answers: tasks, runs, reports and comparisons."""
