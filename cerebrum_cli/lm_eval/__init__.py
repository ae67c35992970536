"""Optional: lm-evaluation-harness on the engine.

Public modules: `extension`, its command.
"""
