"""What commands print of merges, encodings, checks, evaluations, tuning and single tokens."""
