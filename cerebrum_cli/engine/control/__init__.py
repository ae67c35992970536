"""Controls: what may end a reply, or put tokens into it, while it is generated."""
