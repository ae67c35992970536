"""Programs and functions of a model: found in replies, described, and run in a sandbox.

Public modules: `functions`, `sandbox` and `tool_schema`.
"""
