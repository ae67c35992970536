from cerebrum_cli.cli import Command

COMMANDS = (Command("hello", "cerebrum_hello.hello", "hello", "Greet, and answer a question"),)
