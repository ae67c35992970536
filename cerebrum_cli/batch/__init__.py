"""Batches: questions in files, how they are answered, and the objects and tables of their answers.

Public modules: `answering`, `input_row` and `readers`.
"""
