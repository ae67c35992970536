"""One module for each command: its signature and one deferred import of what runs it."""
