"""The final answer of a reply, and when two answers are equal; pure functions.

Public modules: `equality` and `final`.
"""
