"""Programs and functions of a model: found in replies, described, and run in a sandbox.

Public modules: `functions` and `sandbox`.
"""
