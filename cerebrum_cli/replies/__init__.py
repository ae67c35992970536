"""From a question to a reply: which model is asked, its prompts and replies, votes and many rows.

Public modules: `interface`, `majority_vote`, `reply`, `source` and `tally`.
"""
