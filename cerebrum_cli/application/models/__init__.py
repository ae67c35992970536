"""Which model a reference means, which are installed, and which fit this machine."""
