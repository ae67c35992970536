"""Argv in, exit code out: one file a command, and no logic."""
