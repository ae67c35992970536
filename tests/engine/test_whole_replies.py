"""A reply that arrives whole equals the same reply token by token, wherever it is ended, continued or broken."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted_backend import END, FIRST_WORD, ScriptedBackend
from thinkers import reasoning_end

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.events import Event, FinishEvent, RefusedEvent, SequenceId
from cerebrum_cli.core.grammar import Grammar
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.core.vocabulary import Vocabulary
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.engine.requests import Request
from cerebrum_cli.formats.markers import REASONING_MARKUPS
from cerebrum_cli.formats.reply_text import ReplyRules
from cerebrum_cli.replies.reply import Reply
from cerebrum_cli.replies.reply_controls import AnswerNow, ReasoningBudget, endings
from cerebrum_cli.servers.faults import RefusedRequestError
from cerebrum_cli.servers.kind import ReplyChunk, StopReason
from cerebrum_cli.servers.token_replies import TokenSample

CONTEXT = 400
PARTS = (
    *("<think>", "</think>", "<think>\n", "\n</think>\n\n", "<th", "ink>", "</", "\n\n", " ", "\n"),
    *("I see. ", "It is 3", ".5", "So be it!", "STOP", "ST", "OP", "The answer is 4."),
    *("é", "🙂", "日本", "over and over "),
)
STOPS = ((), ("STOP",), ("\n\n", "answer"), ("🙂",))
replies = st.lists(
    st.one_of(st.sampled_from(PARTS).map(str.encode), st.sampled_from([b"\xf0\x9f", b"\x99\x82", b"\xc3", b"\xff"])),
    max_size=24,
).map(b"".join)


LAST = (FinishEvent, RefusedEvent)


class Served:
    """A server of a scripted reply, to whose tokens others are added where turns begin after forced ones."""

    def __init__(self, vocabulary: Vocabulary, script: Sequence[int]) -> None:
        self.vocabulary = vocabulary
        self._script = script

    def reply(self, request: Request, is_whole: bool) -> tuple[Any, ...]:
        """What a reply is in the end, of which the server sends all of a turn, or one token at a time."""
        sample = TokenSample(SequenceId(0), request, 3, CONTEXT, vocabulary=self.vocabulary)
        events: list[Event] = []
        try:
            while not events or sample.needs_turn:
                turn = sample.take_turn()
                for chunk in self._answer(turn, request, is_whole):
                    if not (sample.needs_turn or any(isinstance(event, LAST) for event in events)):
                        events += sample.add(chunk)
                assert events or sample.needs_turn
        except RefusedRequestError as refused:
            return (refused.error.message,)
        return outcome(events)

    def _answer(self, turn: Request, request: Request, is_whole: bool) -> list[ReplyChunk]:
        given = len(turn.prompt_tokens) - len(request.prompt_tokens)
        limit = min(CONTEXT - len(turn.prompt_tokens), turn.params.max_tokens or CONTEXT)
        tokens = tuple(self._script[given : given + limit])
        logprobs = tuple(-(token % 7) / 10 if token % 3 else None for token in tokens) if turn.ask.logprobs else ()
        is_over = bool(tokens) and self.vocabulary.is_eog(tokens[-1]) and not turn.ask.ignore_eos
        end: StopReason = "eos" if is_over else "limit"
        if is_whole:
            return [ReplyChunk(tokens, logprobs=logprobs, end=end)]
        parts = [ReplyChunk((token,), logprobs=logprobs[at : at + 1]) for at, token in enumerate(tokens)]
        return [*parts, ReplyChunk(end=end)]


def outcome(events: Sequence[Event]) -> tuple[Any, ...]:
    reply = Reply()
    for event in events:
        if isinstance(event, RefusedEvent):
            return event.error.message, event.text
        reply.emit(event)
    finish = reply.finish
    counts = finish.reason, finish.completion_tokens, finish.by_stop_string, finish.has_all_tokens, finish.forced
    return reply.text, reply.reasoning, *counts, list(reply.sampled), reply.probability, reply.lowest_window


def thinking_request(
    vocabulary: Vocabulary,
    budget: int | None = None,
    stop: tuple[str, ...] = (),
    is_opened: bool = False,
    limit: int | None = None,
    grammar: str | None = None,
    **more: Any,
) -> Request:
    """A request for a reply that may think, be constrained, be stopped, and be told to answer."""
    rules = ReplyRules(
        REASONING_MARKUPS[:1],
        REASONING_MARKUPS[0] if is_opened else None,
        trims=True,
        stops_anywhere=not (stop or grammar),
        markers={"<think>": vocabulary.special_token_ids(["<think>"])},
        endings=endings(vocabulary),
        reasoning_end=reasoning_end(budget),
        plain_answer=grammar is not None,
    )
    return Request(
        (1, 2),
        SamplingParams(max_tokens=limit, stop=stop),
        Ask(grammar=Grammar("gbnf", grammar) if grammar else None, **more),
        loop_check=True,
        controls=() if budget is None else (partial(ReasoningBudget, budget, AnswerNow()),),
        rules=rules,
        is_visible=vocabulary.special_token_ids(["<think>", "</think>"]).__contains__,
    )


OPTIONS = {
    "budget": st.sampled_from([None, None, 0, 3, 12, 40]),
    "stop": st.sampled_from(STOPS),
    "is_opened": st.booleans(),
    "limit": st.sampled_from([None, None, 1, 20, 90]),
    "logprobs": st.booleans(),
    "ignore_eos": st.booleans(),
}


def require_equal(vocabulary: Vocabulary, script: Sequence[int], request: Request) -> None:
    server = Served(vocabulary, script)
    assert server.reply(request, is_whole=True) == server.reply(
        replace(request, ask=replace(request.ask, stream=True)), is_whole=False
    )


WORDS = (b"<think>\nI", b" see</th", b"ink>\n", b"ST", b"OPand", b". It is 3.", b"\xf0\x9f\x99", b"\x82.\n\n")


@pytest.mark.slow
@given(st.lists(st.one_of(replies, st.integers(0, len(WORDS) - 1), st.just(END)), max_size=12), st.data())
def test_whole_reply_equals_its_tokens(parts: list[bytes | int], data: st.DataObject) -> None:
    backend = ScriptedBackend(lambda held, seed: END, words=WORDS)
    script: list[int] = []
    for part in parts:
        script += part if isinstance(part, bytes) else [END if part == END else FIRST_WORD + part]
    grammar = st.sampled_from([None, None, "root ::= .*"])
    request = data.draw(st.builds(thinking_request, st.just(backend), grammar=grammar, **OPTIONS))
    require_equal(backend, [*script, END], request)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(replies, st.sampled_from(["<think>", "</think>"])), max_size=8), st.data())
def test_whole_reply_of_a_real_vocabulary_equals_its_tokens(
    chatml: LlamaBackend, parts: list[bytes | str], data: st.DataObject
) -> None:
    script: list[int] = []
    for part in parts:
        text = part if isinstance(part, str) else part.decode("utf-8", "surrogateescape")
        script += chatml.tokenize((Text(text, trusted=isinstance(part, str)),))
    [end] = chatml.special_token_ids(["<|im_end|>"])
    grammar = st.sampled_from([None, None, "root ::= [^x]*"])
    request = data.draw(st.builds(thinking_request, st.just(chatml), grammar=grammar, **OPTIONS))
    require_equal(chatml, [*script, end], request)
