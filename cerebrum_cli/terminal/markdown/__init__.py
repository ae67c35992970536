"""Render Markdown while it streams."""
