"""Answer rows on the nodes of a Ray cluster.

Public module: `distribution`.
"""
