"""`cerebrum` with a scripted model behind it: python scripted_command.py SCRIPT ARGUMENTS...

SCRIPT is JSON: `reply` is said whatever is asked, a byte a token, with `pause` seconds before each; after `stuck`
tokens the model does not come back; `load` is how many seconds loading takes, and `reload` how many it takes when it
is done again.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripted_backend import END, ScriptedBackend

from cerebrum_cli.engine.backend import Backend, StopFlag
from cerebrum_cli.ground.errors import EngineError
from cerebrum_cli.ground.events import Event, LoadEvent
from cerebrum_cli.main import run
from cerebrum_cli.runtime import Runtime
from cerebrum_cli.terminal import progress
from cerebrum_cli.terminal.streams import standard_streams


def scripted(script: dict[str, Any]) -> ScriptedBackend:
    """Return a backend that follows the script."""
    reply = script["reply"].encode()
    begun: list[int] = []

    def model(held: tuple[int, ...], seed: int) -> int:
        begun.append(len(held))
        said = len(held) - begun[0]
        time.sleep(script.get("pause", 0.0))
        if said == script.get("stuck"):
            time.sleep(60)
        return reply[said] if said < len(reply) else END

    return ScriptedBackend(model, context_size=100_000, batch_size=1000)


def main() -> None:
    """Run one command line on the scripted model."""
    script = json.loads(sys.argv[1])
    progress.PATIENCE_S = 0.05

    def open_backend(tell: Callable[[Event], None], stop: StopFlag) -> Backend:
        tell(LoadEvent(0.5))
        loaded = time.monotonic() + script.get("load", 0.0)
        script["load"] = script.get("reload", script.get("load", 0.0))
        while time.monotonic() < loaded:
            if stop:
                raise EngineError("loading was interrupted")
            time.sleep(0.01)
        return scripted(script).open(tell, stop)

    home = Path(os.environ["HOME"])
    runtime = Runtime(
        config_directory=home / "config" / "cerebrum",
        data_directory=home / "data" / "cerebrum",
        cache_directory=home / "cache" / "cerebrum",
        streams=standard_streams(),
        open_backend=lambda request: open_backend,
        native_log=lambda listener: None,
        schema_to_grammar=lambda schema: (schema, ()),
    )
    sys.exit(run(sys.argv[2:], runtime))


if __name__ == "__main__":
    main()
