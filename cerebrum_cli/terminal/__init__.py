"""Terminal input and output: the only package that knows screens and keyboards.

Public modules: `streams`, `progress`, `session_text`, `sinks`, `tables` and `repl.interactive`.
"""
