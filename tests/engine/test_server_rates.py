"""What each of several servers generates: reported by the engine, and shown by the progress of a batch."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from person import OpenTerminal, Person
from remote_engines import connected, events_of, request_of, serving, unicode_model
from scripted_command import SCRIPTED
from server_kinds import LlamaServer

from cerebrum_cli.core.events import FinishEvent, ServersEvent, ServerTokens
from cerebrum_cli.engine.sequence import Request
from cerebrum_cli.terminal.progress import server_rates

Start = Callable[[int, list[LlamaServer]], Person]

ADDRESS = r"127\.0\.0\.1:\d+"


def slow_model(held: tuple[int, ...], seed: int) -> int:
    """Repeat a letter endlessly, 50 times a second."""
    time.sleep(0.02)
    return ord("a")


def prompts(count: int) -> list[Request]:
    return [request_of(f"Q{row}", seed=row) for row in range(count)]


def test_remote_reports_what_each_server_generated() -> None:
    with serving(unicode_model, 2) as servers, connected(*servers) as engine:
        events = events_of(engine, *prompts(20))
        assert not any(isinstance(event, ServersEvent) for event in events_of(engine))
    last = events[-1]
    assert isinstance(last, ServersEvent)
    assert [server.name for server in last.servers] == [server.url for server in servers]
    assert not any(server.is_lost for server in last.servers)
    generated = sum(event.completion_tokens for event in events if isinstance(event, FinishEvent))
    assert sum(server.tokens for server in last.servers) == generated > 0


def test_remote_reports_nothing_of_a_single_server() -> None:
    with serving(unicode_model) as servers, connected(*servers) as engine:
        assert not any(isinstance(event, ServersEvent) for event in events_of(engine, *prompts(3)))


def test_server_rates_of_many_are_a_range() -> None:
    servers = [ServerTokens(f"https://gpu{at}:8080", 100 * at, at == 1) for at in range(1, 10)]
    assert server_rates(servers[:2], 10.0) == "gpu1:8080 lost, gpu2:8080 20.0"
    assert server_rates(servers, 10.0) == "9 servers, 10.0 to 90.0 each, 1 lost"


@pytest.fixture
def start(open_terminal: OpenTerminal, chatml_model: Path, tmp_path: Path) -> Start:
    """A function that starts a batch of 60 prompts on servers, in a window of so many columns."""
    (tmp_path / "in.txt").write_text("".join(f"question {row}\n" for row in range(60)))
    command = [sys.executable, SCRIPTED, json.dumps({"reply": ""}), "batch", "in.txt", "-o", "out.jsonl", "-n", "20"]

    def start(columns: int, servers: list[LlamaServer]) -> Person:
        endpoints = [part for server in servers for part in ("--endpoint", server.url)]
        return open_terminal(*command, "-m", chatml_model, *endpoints, size=(columns, 24))

    return start


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_batch_bar_shows_the_rate_of_each_server(start: Start) -> None:
    with serving(slow_model, 2, context_size=1000) as servers:
        person = start(120, servers)
        person.wait_for("tokens/s (127.0.0.1:")
        bar = person.screen.lines[0]
        assert re.search(
            rf"━ \d+ truncated \d+\.\d tokens/s \({ADDRESS} \d+\.\d, {ADDRESS} \d+\.\d\) 0:\d\d left$", bar
        )
        assert person.end() == 0
        summary = (
            rf"60 of 60 done, 60 truncated, 1200 tokens in (\S+) s \((\S+) t/s: {ADDRESS} (\S+), {ADDRESS} (\S+)\)"
        )
        found = re.fullmatch(summary, "".join(person.screen.lines))
        assert found
        _, total, *rates = map(float, found.groups())
        assert sum(rates) == pytest.approx(total, abs=0.2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_batch_bar_omits_servers_in_a_narrow_window(start: Start) -> None:
    with serving(slow_model, 2, context_size=1000) as servers:
        person = start(60, servers)
        person.wait_for(" tokens/s 0:0")
        assert person.end() == 0
        bars, summary, _ = person.output.partition("60 of 60 done")
        assert "127" not in bars and summary
        assert "…" not in person.output
