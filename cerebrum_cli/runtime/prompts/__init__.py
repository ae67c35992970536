"""Saved prompts: `--use` and `--save-prompt`, and the runs of `cerebrum prompts`."""
