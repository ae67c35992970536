"""Measure ways of opening a model, each in a child process."""
