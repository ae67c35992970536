"""Many rows and their results: a store that survives kills, and the result file that appears once it has all rows.

Public modules: `output_tables`, `results`, `rows` and `saved`.
"""
