"""What is installed, the catalog and the Hub, downloads, and what fits this machine.

Public modules: `library`, `installed`, `online` and `pull`.
"""
