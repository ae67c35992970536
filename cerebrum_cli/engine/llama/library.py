"""llama.cpp's C interface, imported without the package around it, and its log in a ring buffer.

Importing `llama_cpp` itself brings numpy and jinja2 along and takes five times as long as the bindings alone;
with an empty parent module registered first, only the bindings are read.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import sys
from collections import deque
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.settings import environment, set_environment_default

DEBUG, WARNING, CONTINUED = 1, 3, 5  # of ggml's log levels; 2 is info, 4 error


class Log:
    """llama.cpp's last lines; each is forwarded too where somebody listens."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=200)
        self.problems: deque[str] = deque(maxlen=20)
        self.forward: Callable[[str], None] | None = None
        self._open = ""
        self._level = 0

    def write(self, level: int, text: bytes, _: object = None) -> None:
        """Take a piece of log text as llama.cpp gives it: a line, or part of one."""
        if level != CONTINUED:
            self._level = level
        if self._level == DEBUG:
            return
        self._open += text.decode("utf-8", "replace")
        while "\n" in self._open:
            line, self._open = self._open.split("\n", 1)
            self.lines.append(line)
            if self._level >= WARNING:
                self.problems.append(line)
            if self.forward is not None:
                self.forward(line)


def import_bindings(name: str) -> Any:
    """Import one module of `llama_cpp` without running the package's `__init__`."""
    if "llama_cpp" not in sys.modules:
        spec = find_spec("llama_cpp")
        if spec is None or spec.submodule_search_locations is None:
            raise EngineError("llama-cpp-python is not installed", "pip install llama-cpp-python")
        package = ModuleType("llama_cpp")
        package.__path__ = list(spec.submodule_search_locations)
        package.__spec__ = spec
        sys.modules["llama_cpp"] = package
    try:
        return importlib.import_module(f"llama_cpp.{name}")
    except (RuntimeError, OSError, ImportError, AttributeError) as error:  # the last: a library of another version
        raise EngineError(
            f"llama.cpp's library cannot be loaded: {error}",
            "reinstall it: pip install --force-reinstall llama-cpp-python",
        ) from error


# llama.cpp's threads wait for each other by spinning, for ever by default. Two programs on the same cores then wait for
# threads that are not running: two answers at once fell from 200 to 0.3 tokens a second each on 2 cores, and with this
# many turns, after which a thread sleeps, to 16; one answer alone is as fast. Read when the library is loaded.
if environment("OMP_WAIT_POLICY") is None:
    set_environment_default("GOMP_SPINCOUNT", "3000")

log = Log()
llama = import_bindings("llama_cpp")
_write_log = llama.llama_log_callback(log.write)  # llama.cpp keeps the pointer, so this must live as long as we do
llama.llama_log_set(_write_log, None)

# libc's abs, called with a line's level, does nothing: without Python and its lock, which others work under meanwhile.
_discard_log = ctypes.cast(ctypes.CDLL("msvcrt" if sys.platform == "win32" else None).abs, llama.llama_log_callback)


@contextlib.contextmanager
def suppress_log() -> Iterator[None]:
    """Drop what llama.cpp says, unless somebody listens: of a model it loads it says two thousand lines."""
    if log.forward is not None:
        yield
        return
    llama.llama_log_set(_discard_log, None)
    try:
        yield
    finally:
        llama.llama_log_set(_write_log, None)


llama.llama_backend_init()
