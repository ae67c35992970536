"""Where the parts meet: real implementations and directories, and the run of each command."""
