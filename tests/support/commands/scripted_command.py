"""`cerebrum` with a scripted model: python scripted_command.py SCRIPT ARGUMENTS...

SCRIPT is JSON. `reply` answers every prompt, one byte for each token, with `pause` seconds before each; after `stuck`
tokens the model hangs. `load` and `reload` are the seconds that the first and later loads take. For batches, `rows`
maps the ends of prompts to replies, `seeds` lists replies to all other prompts by seed, `context` is the context size,
`grows` what it can grow to, and `cells` the number of tokens that fit in memory. With `holds`, the first step lasts
until Ctrl-C.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

from command_line import CommandLine, Finished
from scripted_backend import END, ScriptedBackend

from cerebrum_cli.cli.app import App
from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.events import Event, LoadEvent
from cerebrum_cli.engine.backend import Backend
from cerebrum_cli.engine.requests import LoadOptions
from cerebrum_cli.engine.step import StopFlag
from cerebrum_cli.main import run
from cerebrum_cli.terminal import status_line
from cerebrum_cli.terminal.streams import Streams, standard_streams

SCRIPTED = str(Path(__file__))
ENDS = (b"\nAI:", b"<|im_end|>\n<|im_start|>assistant\n")  # of prompts


def backend_for(script: dict[str, Any], slots: int) -> ScriptedBackend:
    reply, starts = script.get("reply", "").encode(), list[int]()

    def reply_to(held: tuple[int, ...], seed: int) -> tuple[bytes, int]:
        """The reply to a prompt, and where it starts."""
        if "rows" not in script:
            starts.append(len(held))
            return reply, starts[0]
        text = bytes(held)
        mark = next(mark for mark in ENDS if mark in text)
        prompt = text[: text.rfind(mark)]
        own = (reply for question, reply in script["rows"].items() if prompt.endswith(question.encode()))
        return (next(own, None) or script["seeds"][seed % len(script["seeds"])]).encode(), len(prompt + mark)

    def model(held: tuple[int, ...], seed: int) -> int:
        time.sleep(script.get("pause", 0.0))
        answer, start = reply_to(held, seed)
        said = len(held) - start
        if said == script.get("stuck"):
            time.sleep(60)
        return answer[said] if said < len(answer) else END

    return ScriptedBackend(
        model,
        slots=slots,
        context_size=script.get("context", 100_000),
        max_context=script.get("grows", 0),
        batch_size=1000,
        fitting_cells=script.get("cells", 1_000_000),
        holds={0: 0} if script.pop("holds", False) else {},
    )


def app_for(script: dict[str, Any], home: Path, streams: Streams | None = None) -> App:
    """An app with its directories in `home`, and pipes unless it is given streams.

    Every backend opened is added to `backends` of the script.
    """

    def open_file(options: LoadOptions, tell: Callable[[Event], None], stop: StopFlag) -> Backend:
        tell(LoadEvent(0.5))
        loaded = time.monotonic() + script.get("load", 0.0)
        script["load"] = script.get("reload", script.get("load", 0.0))
        while time.monotonic() < loaded:
            if stop:
                raise EngineError("loading interrupted")
            time.sleep(0.01)
        backend = backend_for(script, options.context.slots)
        script.setdefault("backends", []).append(backend)
        return backend.open(tell, stop)

    return App(
        config_directory=home / "config" / "cerebrum",
        data_directory=home / "data" / "cerebrum",
        cache_directory=home / "cache" / "cerebrum",
        streams=streams or Streams(StringIO(), StringIO(), None, False, False, False),
        open_file=open_file,
    )


def run_here(script: dict[str, Any], home: Path, *arguments: str | Path, piped: bytes | None = None) -> Finished:
    out, err = StringIO(), StringIO()
    streams = Streams(out, err, None if piped is None else BytesIO(piped), False, False, False)
    code = run([str(argument) for argument in arguments], app_for(script, home, streams))
    return Finished(code, out.getvalue(), err.getvalue())


def start_scripted(
    script: dict[str, Any], home: Path, *arguments: str, around: tuple[str, ...] = ()
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*around, sys.executable, SCRIPTED, json.dumps(script), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=CommandLine(home).environment(),
        cwd=home,
        bufsize=0,
    )


def install(home: Path, model: Path, name: str) -> None:
    assert run_here({}, home, "pull", model, "--name", name).code == 0


def main() -> None:
    script = json.loads(sys.argv[1])
    status_line.SHOW_AFTER_S = 0.05
    sys.exit(run(sys.argv[2:], app_for(script, Path(os.environ["HOME"]), standard_streams())))


if __name__ == "__main__":
    main()
