"""Settings in a chat whose model runs on a server."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import CommandLine
from llama_engines import open_engine
from llama_server import LlamaServer

pytestmark = pytest.mark.slow

LOCAL = ("threads", "gpu_layers", "drafts", "cache_gb")


def test_chat_on_a_server_sets_and_shows_no_local_settings(new_user: CommandLine, chatml_model: Path) -> None:
    typed = "/set ctx 100\n/set nonsense 1\n/set temperature 0.5\nQ\n/params\n"
    with open_engine(chatml_model) as engine, LlamaServer(engine) as server:
        done = new_user.run("chat", "-m", chatml_model, "--endpoint", server.url, stdin=typed)
    assert "ctx cannot be set: the model runs on a server\n hint: set it where the server is started\n" in done.err
    [hint] = [line for line in done.err.splitlines() if " settings: " in line]
    shown = dict(line.split(maxsplit=1) for line in done.err.splitlines() if line.startswith(("temperature ", "ctx ")))
    assert shown == {"temperature": "0.5", "ctx": "2048"}
    assert not [name for name in LOCAL if name in hint or f"\n{name} " in done.err]
