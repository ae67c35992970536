"""Composition root: real implementations and directories, and the run of each command."""
