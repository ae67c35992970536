"""What commands print of merges, checks, evaluations, tuning and single tokens."""
