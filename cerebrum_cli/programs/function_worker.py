"""The process of a file's functions: a line of JSON for each function call on standard input, its result on the output.

Functions cannot reach these: for them, standard input is empty, and standard output is standard error.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout, suppress
from importlib.util import module_from_spec, spec_from_file_location
from inspect import isfunction, unwrap
from io import StringIO
from pathlib import Path

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.text import describe_error
from cerebrum_cli.programs.python_function import NO_RESULT, PythonFunction

ENDS = (SystemExit, KeyboardInterrupt)  # of the process


class Functions:
    """The public functions that a file defines, by name; `unusable` are errors and hints of those no model can call."""

    def __init__(self, path: Path) -> None:
        self.by_name: dict[str, PythonFunction] = {}
        self.unusable: list[tuple[str, str]] = []
        name = f"cerebrum_tools_{path.stem}"
        spec = spec_from_file_location(name, path)
        assert spec and spec.loader
        module = sys.modules[name] = module_from_spec(spec)
        sys.path.append(str(path.parent))  # it may import its siblings
        sys.dont_write_bytecode = True  # it would hide a change in the same second that keeps the size
        spec.loader.exec_module(module)
        for key, value in [*vars(module).items()]:
            if key[0] != "_" and getattr(value, "__module__", None) == name and isfunction(unwrap(value)):
                try:
                    function = PythonFunction(value)
                except UsageError as error:
                    self.unusable.append((error.message, error.hint))
                else:
                    self.by_name[function.spec.name] = function

    @property
    def description(self) -> JsonDict:
        specs = [function.spec for function in self.by_name.values()]
        functions = [(spec.name, spec.description, spec.parameters) for spec in specs]
        return {"functions": functions, "unusable": self.unusable}

    def call(self, name: str, arguments: JsonObject) -> str:
        """What a function prints, followed by its result."""
        if name not in self.by_name:  # the file has changed
            return f"there is no function {name}"
        with redirect_stdout(StringIO()) as printed:
            try:
                result = self.by_name[name](arguments)
            except ENDS:
                raise
            except BaseException as error:
                result = describe_error(error)
        if printed.getvalue() and result == NO_RESULT:
            return printed.getvalue()
        return printed.getvalue() + result


def main() -> None:
    with os.fdopen(os.dup(0)) as requests, os.fdopen(os.dup(1), "w") as replies:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        for value in answers(requests):
            replies.write(f"{json.dumps(value)}\n")
            replies.flush()


def answers(requests: Iterable[str]) -> Iterator[object]:
    """Yield what the file defines, or why it cannot be imported, and then the results of calls."""
    try:
        functions = Functions(Path(sys.argv[1]))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        yield {"problem": describe_error(error)}
        return
    yield functions.description
    for line in requests:
        request = json.loads(line)
        yield functions.call(request["name"], request["arguments"])


if __name__ == "__main__":
    with suppress(KeyboardInterrupt, BrokenPipeError):  # Ctrl-C, or the end of the command
        main()
