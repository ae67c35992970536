"""Trust: which answers to keep so that at most a wanted share of them is wrong.

Public modules: `calibration`, `calibration_file` and `shift`.
"""
