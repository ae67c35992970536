"""Engines on servers that stand in for real ones, and what a model on this machine replies to the same requests."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from typing import Any, TypeVar
from zlib import crc32

import pytest
from asking import Reply, collect_replies, generate, loaded
from model_servers import ModelServer
from scripted_backend import END, Model, ScriptedBackend
from server_kinds import LlamaServer

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.events import Event, NoticeEvent, RefusedEvent, SequenceId
from cerebrum_cli.core.grammar import Grammar
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.engine import Engine
from cerebrum_cli.engine.local_engine import LocalEngine
from cerebrum_cli.engine.requests import Request
from cerebrum_cli.servers import faults, pool, server as server_module
from cerebrum_cli.servers.endpoint import Endpoint, Servers
from cerebrum_cli.servers.remote_engine import RemoteEngine

Kind = TypeVar("Kind", bound=ModelServer)
CHARACTERS = ("a", "é", "日", "🙂", " ")


def unicode_model(held: tuple[int, ...], seed: int) -> int:
    """Generate characters of one to four bytes, each drawn from the bytes before it and the seed, or end."""
    data = bytes(held)
    start = len(data)
    while start and len(data) - start < 4 and data[start - 1] & 0xC0 == 0x80:
        start -= 1
    lead = data[start - 1] if start else 0
    length = 4 if lead >= 0xF0 else 3 if lead >= 0xE0 else 2 if lead >= 0xC0 else 1
    begun = data[start - 1 :] if start else b""
    if len(begun) < length:
        character = next(each.encode() for each in CHARACTERS if each.encode().startswith(begun))
        return character[len(begun)]
    drawn = crc32(repr((held, seed)).encode()) % 16
    return END if drawn == 15 else CHARACTERS[drawn % len(CHARACTERS)].encode()[0]


@contextmanager
def serving_kind(kind: type[Kind], model: Model, count: int = 1, **options: Any) -> Iterator[list[Kind]]:
    with ExitStack() as stack:
        servers = [kind(model, **options) for _ in range(count)]
        for server in servers:
            stack.enter_context(server)
        yield servers


def serving(model: Model, count: int = 1, **options: Any) -> AbstractContextManager[list[LlamaServer]]:
    return serving_kind(LlamaServer, model, count, **options)


def set_patience(monkeypatch: pytest.MonkeyPatch, **times: Any) -> None:
    """Try servers again soon, and wait for them at the start however loaded the machine is."""
    quick = {"TICK_S": 0.02, "JOIN_S": 60.0, "SILENCE_S": 60.0, "LONG_SILENCE_S": 300.0}
    monkeypatch.setattr(server_module, "RETRY_S", times.pop("RETRY_S", (0.02,)))
    monkeypatch.setattr(faults, "BUSY_S", 0.02)
    for name, value in {**quick, **times}.items():
        monkeypatch.setattr(pool, name, value)


def served_engine(engine: LocalEngine) -> LlamaServer:
    """A llama-server that generates greedily with a real model."""
    vocabulary = engine.vocabulary
    [eos] = vocabulary.special_token_ids([vocabulary.special_token_text("eos")])

    def model(held: tuple[int, ...], seed: int) -> int:
        [reply] = collect_replies(generate(engine, [Request(held, SamplingParams(max_tokens=1))])).values()
        return reply.ids[0] if reply.ids else eos

    return LlamaServer(model, context_size=engine.context_size, vocabulary=vocabulary)


def remote_engine(
    *servers: ModelServer | str,
    window: int | None = None,
    messages: bool = False,
    **endpoint: Any,
) -> RemoteEngine:
    urls = [server if isinstance(server, str) else server.url for server in servers]
    vocabulary = ScriptedBackend(lambda held, seed: END)
    endpoints = [Endpoint(url, url, **endpoint) for url in urls]
    return RemoteEngine(vocabulary.open, Servers(endpoints, window), messages)


@contextmanager
def connected(*servers: ModelServer | str, **options: Any) -> Iterator[RemoteEngine]:
    with closing(remote_engine(*servers, **options)) as engine:
        list(engine.load())
        yield engine


def replies_of(engine: Engine, *requests: Request) -> dict[SequenceId, Reply]:
    with closing(engine.complete(requests)) as events:
        return collect_replies(event for event in events if not isinstance(event, NoticeEvent))


def local_replies(model: Model, *requests: Request, slots: int = 4, context_size: int = 100) -> dict[SequenceId, Reply]:
    scripted = ScriptedBackend(model, slots=slots, context_size=context_size)
    with loaded(LocalEngine(scripted.open)) as engine:
        return replies_of(engine, *requests)


def summary(reply: Reply) -> tuple[Any, ...]:
    """What must not depend on where a reply was generated."""
    finish = reply.finish
    assert finish
    counts = finish.prompt_tokens, finish.completion_tokens
    return reply.text, reply.reason, finish.seed, *counts, finish.by_stop_string, finish.forced


def summaries(replies: dict[SequenceId, Reply]) -> dict[SequenceId, tuple[Any, ...]]:
    return {id: (*summary(reply), tuple(reply.ids)) for id, reply in sorted(replies.items())}


def request_of(prompt: str, *, n: int = 1, stream: bool = False, max_n: int = 1, **params: Any) -> Request:
    """A request for replies to a text, of at most 40 tokens."""
    values = {"max_tokens": 40, "seed": 1, **params}
    own = {name: values.pop(name) for name in ("is_visible", "loop_check", "controls", "rules") if name in values}
    ignore_eos = values.pop("ignore_eos", False)
    text = values.pop("grammar", None)
    grammar = Grammar("gbnf", text) if text else None
    ask = Ask(grammar=grammar, n=n, max_n=max_n, stream=stream, ignore_eos=ignore_eos)
    return Request(tuple(prompt.encode()), SamplingParams(**values), ask, **own)


def events_of(engine: Engine, *requests: Request) -> list[Event]:
    with closing(engine.complete(requests)) as events:
        return list(events)


def notices(events: Iterable[Event]) -> list[str]:
    return [event.message for event in events if isinstance(event, NoticeEvent)]


def outcome(events: Iterable[Event]) -> dict[SequenceId, Any]:
    replies = collect_replies(event for event in events if not isinstance(event, NoticeEvent | RefusedEvent))
    return summaries({id: reply for id, reply in replies.items() if reply.finish})
