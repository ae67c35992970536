"""Programs and functions of a model: found in replies, described, and run in a sandbox.

Public modules: `code`, `functions` and `sandbox`.
"""
