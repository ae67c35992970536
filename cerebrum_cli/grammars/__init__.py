"""JSON Schemas, grammars and regular expressions that constrain an answer, as llguidance takes them.

Public modules: `guidance`, `validation`.
"""
