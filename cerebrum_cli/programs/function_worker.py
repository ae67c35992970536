"""The process of a file's functions: it imports the file, and runs the calls that the command sends.

Functions cannot reach the command: standard output is standard error outside of results, there is no standard input,
and the connections have numbers of their own. When the command ends, however it ends, so does this process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from inspect import isfunction, unwrap
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import Any

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.programs.function_calls import FunctionOutput, describe, run_function
from cerebrum_cli.programs.function_process import LOST
from cerebrum_cli.programs.function_schema import Signature


def main() -> None:
    """Serve requests: first for the file and `sys.path`, then for calls. Their answers are JSON objects."""
    requests, replies = (Connection(int(number)) for number in sys.argv[1:])
    for connection in (requests, replies):
        os.set_inheritable(connection.fileno(), False)
        os.register_at_fork(after_in_child=connection.close)
    identity = os.fstat(replies.fileno()).st_ino
    null, errors = os.open(os.devnull, os.O_RDONLY), os.dup(2)
    output = FunctionOutput(sys.stderr)
    sys.stdout = output
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    functions: Functions | None = None
    for request in _received(requests):
        with suppress(OSError):  # a function may have closed them
            for descriptor, source in enumerate((null, errors, errors)):
                os.dup2(source, descriptor)
        if functions is None:
            functions = Functions(output)
            reply = functions.load(Path(request["file"]), request["path"])
        elif "call" in request:
            reply = functions.read(request["call"], request["arguments"])
        else:
            reply = functions.run()
        try:
            if os.fstat(replies.fileno()).st_ino != identity:  # a function closed it, and opened a file
                os._exit(LOST)
            replies.send_bytes(json.dumps(reply).encode())
        except OSError:  # also in a child of a function that forks
            os._exit(LOST)


class Functions:
    """The functions of a file, and the call that is to be run."""

    def __init__(self, output: FunctionOutput) -> None:
        self._output = output
        self._signatures: dict[str, Signature] = {}
        self._functions: dict[str, Any] = {}
        self._next: tuple[str, dict[str, Any]] | None = None

    def load(self, path: Path, import_path: list[str]) -> JsonDict:
        """Import a file: what a model sees of its functions, and which it cannot call; or why it cannot be imported."""
        sys.path[:] = [*import_path, str(path.parent)]  # it may import its siblings, even later, in its functions
        name = f"cerebrum_tools_{path.stem}"
        module = sys.modules[name] = ModuleType(name)
        module.__file__ = str(path)
        try:
            exec(compile(path.read_bytes(), path, "exec", dont_inherit=True), vars(module))
        except BaseException as error:
            return {"problem": describe(error)}
        unusable = []
        for name, value in [*vars(module).items()]:
            if name[0] != "_" and getattr(value, "__module__", None) == module.__name__ and isfunction(unwrap(value)):
                try:
                    signature = Signature(value)
                except UsageError as error:
                    unusable.append([error.message, error.hint])
                else:
                    self._signatures[signature.spec.name], self._functions[signature.spec.name] = signature, value
        specs = [signature.spec for signature in self._signatures.values()]
        described = [[spec.name, spec.description, spec.parameters] for spec in specs]
        return {"functions": described, "unusable": unusable}

    def read(self, name: str, arguments: JsonDict) -> JsonDict:
        """Convert the arguments of a call, which `run` runs; a result if they are wrong."""
        signature = self._signatures.get(name)
        if signature is None:  # the file has changed
            return {"result": f"there is no function {name}"}
        try:
            values = signature.read(arguments)
            written = signature.as_json(values)
        except ValueError as problem:
            return {"result": f"invalid arguments: {problem}"}
        except BaseException as error:  # of a validator
            return {"result": describe(error)}
        self._next = name, values
        return {"arguments": written}

    def run(self) -> JsonDict:
        """Run the call that was read. Ctrl-C interrupts it; otherwise it is ignored."""
        assert self._next
        name, values = self._next
        try:
            try:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                result = run_function(self._functions[name], values, self._output)
            finally:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
        except KeyboardInterrupt:
            result = "KeyboardInterrupt"
        return {"result": result}


def _received(requests: Connection) -> Iterator[Any]:
    """Requests until the command has ended; a thread reads them, so that an end is noticed."""
    received: SimpleQueue[Any] = SimpleQueue()

    def read() -> None:
        with suppress(Exception):  # the end of the command, or a function has closed the connection
            while True:
                received.put(json.loads(requests.recv_bytes()))
        received.put(None)

    threading.Thread(target=read, daemon=True).start()
    return iter(received.get, None)


if __name__ == "__main__":
    main()
