"""Decisions: any model as a choice among given answers, with a probability of each.

Public module: `deciding`.
"""
