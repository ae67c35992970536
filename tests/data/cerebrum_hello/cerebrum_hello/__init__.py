from cerebrum_cli.cli import Command, Extension

EXTENSION = Extension(commands=(Command("hello", "cerebrum_hello.hello", "hello", "Greet, and answer a question"),))
