"""Runs over rows: inputs are read, answered, saved and resumed here, for every command that answers rows.

Public modules: `answering`, `input_file`, `keys`, `output_tables`, `read`, `record`, `row`, `run` and `saved`.
"""
