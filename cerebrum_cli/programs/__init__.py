"""Functions that a model calls, and programs that it writes.

Public modules: `functions` and `monty`.
"""
