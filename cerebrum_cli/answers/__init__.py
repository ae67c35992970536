"""The final answer in a reply, and its normal form; pure functions.

Public modules: `canonical` and `final`.
"""
