"""`python -m cerebrum_cli` is `cerebrum`."""

from cerebrum_cli.main import main

main()
