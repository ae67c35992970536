"""Option groups of the commands: dataclasses whose fields are command-line options; one module per command."""
