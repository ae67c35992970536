"""Replies that may call functions: the rounds with a scripted model, on this machine and behind servers."""

import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import pytest
from asking import running_engine
from cases import rows
from chat_replies import piece, stream_of
from hypothesis import assume, given, settings, strategies as st
from installations import model_on
from remote_engines import connected, serving_kind
from scripted_backend import END, ScriptedBackend
from server_kinds import OllamaServer
from templates import chosen_format
from tool_templates import TOOL_TEMPLATES

from cerebrum_cli.core.conversation import Conversation, Message
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import CallEvent, NoticeEvent, RoundEvent
from cerebrum_cli.core.settings import EMBEDDED
from cerebrum_cli.core.tools import Round, ToolCall
from cerebrum_cli.formats.choice import SERVER
from cerebrum_cli.formats.prompt_format import RAW
from cerebrum_cli.replies.interface import Model
from cerebrum_cli.replies.reply import Reply

QUESTION = "Do I need a coat?"
OSLO = '{"name": "weather", "arguments": {"city": "Oslo"}}'
ROME = '{"name": "weather", "arguments": {"city": "Rome"}}'


def weather(city: str, days: int = 1) -> str:
    """Forecast for a city."""
    return f"Dry in {city} for {days}."


def broken(text: str) -> str:
    """Fails."""
    raise LookupError(f"no {text}")


def tagged(*calls: str) -> str:
    return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)


class Script:
    """A model that gives its replies in order, whatever the prompt, and the prompts that it got.

    The first token of a reply is what follows a prompt, which ends where no reply is in progress.
    """

    def __init__(self, *replies: str) -> None:
        self.replies = [*replies]
        self.prompts: list[str] = []
        self._held: tuple[int, ...] = ()
        self._rest: list[int] = []

    def __call__(self, held: tuple[int, ...], seed: int) -> int:
        if not self._rest or held != self._held:
            self.prompts.append(bytes(held).decode())
            self._rest = [*self.replies.pop(0).encode(), END]
        token = self._rest.pop(0)
        self._held = (*held, token)
        return token


@contextmanager
def opened(
    *replies: str, template: str = "JSON in a tag", name: str = EMBEDDED, context: int = 10_000
) -> Iterator[tuple[Model, Script]]:
    """A model that gives these replies in order, and its script."""
    script = Script(*replies)
    backend = ScriptedBackend(script, context_size=context, batch_size=1000)
    with running_engine(backend) as engine:
        yield model_on(engine, chosen_format(name, TOOL_TEMPLATES.get(template, template))), script


def replied(
    *replies: str,
    tools: Sequence[Callable[..., object]] = (weather,),
    context: int = 10_000,
    markup: str = "",
    name: str = EMBEDDED,
    **more: Any,
) -> tuple[Reply, list[str], list[str]]:
    """The reply of a model that gives these in order, the notices about it, and the prompts of the model."""
    template = TOOL_TEMPLATES["JSON in a tag"] + markup
    with opened(*replies, template=template, name=name, context=context) as (model, script):
        reply = model.reply(QUESTION, tools=tools, **more)
        notices = [event.message for event in reply.events() if isinstance(event, NoticeEvent)]
    return reply, notices, script.prompts


# The library.


def test_reply_runs_calls_and_goes_on_with_their_results() -> None:
    with opened(f"I look.\n{tagged(OSLO)}", "You need none.") as (model, script):
        reply = model.reply(QUESTION, tools=[weather])
        assert list(reply)[-1] == "You need none."[-1]
    call = ToolCall("weather", {"city": "Oslo"}, "Dry in Oslo for 1.")
    assert reply.calls == (call,)
    assert reply.text == "I look.\n\nYou need none."
    tokens = tuple(f"I look.\n{tagged(OSLO)}".encode())
    rounds = (Round((call,), "I look.", None, tokens),)
    assert reply.message == Message("assistant", "You need none.", tuple(b"You need none."), None, None, rounds)
    assert reply.conversation.messages[-1].rounds == rounds
    assert (reply.finish_reason, reply.usage.completion_tokens) == ("stop", len(tokens) + len("You need none."))
    assert '"name": "weather"' in script.prompts[0] and script.prompts[0].endswith("<|im_start|>assistant\n")
    assert script.prompts[1] == (
        f"{script.prompts[0]}I look.\n{tagged(OSLO)}<|im_end|>\n<|im_start|>tool\nDry in Oslo for 1.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_next_question_follows_the_calls_of_the_last_reply() -> None:
    with opened(tagged(OSLO), "No coat.", tagged(ROME), "None there.", "Bye.") as (model, script):
        first = model.reply(QUESTION, tools=[weather]).wait()
        second = model.reply(first.conversation.user("And in Rome?"), tools=[weather]).wait()
        third = model.reply(replace(second.conversation.user("Thanks."), tools=())).wait()
    assert [call.arguments["city"] for call in second.calls] == ["Rome"]
    assert second.text == "None there."
    assert script.prompts[2] == (
        f"{script.prompts[1]}No coat.<|im_end|>\n<|im_start|>user\nAnd in Rome?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert third.text == "Bye." and third.calls == ()
    assert tagged(OSLO) in script.prompts[4] and '"description"' not in script.prompts[4]


def test_properties_of_a_reply_are_of_what_there_is_so_far() -> None:
    with opened(f"I look.\n{tagged(OSLO)}", "None.") as (model, _):
        reply = model.reply(QUESTION, tools=[weather])
        texts = []
        for event in reply.events():
            if isinstance(event, CallEvent):
                texts.append((event.is_done, event.call.result, reply.text, len(reply.calls)))
            elif isinstance(event, RoundEvent):
                assert reply.message.content == "" and reply.message.rounds == (event.round,)
    assert texts == [(False, "", "I look.\n\n", 0), (True, "Dry in Oslo for 1.", "I look.\n\n", 0)]


def test_text_that_is_no_call_streams_on() -> None:
    text = "See:\n```python\nprint(1)\n```\nDone."
    with opened(text) as (model, _):
        pieces = [*model.reply(QUESTION, tools=[weather])]
    assert pieces[pieces.index("S") :] == [*"See:", "\n```python\np", *"rint(1)", "\n```\nD", *"one."]


# What becomes of calls.

# `offered`: whether each prompt has functions; `begins`: the beginning of the first prompt, `prompt`: the end of the
# last one; `kept`: whether each part of the message has the tokens that the model generated.
CASES = rows("replies_with_calls")


@pytest.mark.parametrize("name", CASES)
def test_reply_with_calls(name: str) -> None:
    case = CASES[name]
    reply, notices, prompts = replied(*case["replies"], tools=[weather, broken], **case.get("options", {}))
    assert (reply.text, reply.finish_reason) == (case["text"], case.get("finish", "stop"))
    assert [str(call) for call in reply.calls] == case.get("calls", [])
    assert notices == case.get("notices", [])
    assert ['"description"' in prompt for prompt in prompts] == case.get("offered", [True] * len(prompts))
    assert prompts[0].startswith(case.get("begins", "")) and prompts[-1].endswith(case["prompt"])
    assert reply.usage.completion_tokens == case["tokens"]
    parts: list[Round | Message] = [*reply.message.rounds, reply.message]
    assert "\n\n".join(filter(None, (part.content for part in parts))) == reply.text
    assert [part.tokens is not None for part in parts] == case.get("kept", [True] * len(parts))
    assert [part.content for part in reply.message.rounds] == case.get("rounds", [""] * len(reply.message.rounds))
    reasoning = [part.reasoning for part in reply.message.rounds] + [reply.message.reasoning]
    assert [*filter(None, reasoning)] == case.get("reasoning", [])
    for call, result in zip(reply.calls, case.get("results", ()), strict=False):
        assert call.result.startswith(result) and f"tool\n{result}" in prompts[1]


@pytest.mark.parametrize("text", rows("text_without_calls"))
def test_text_that_is_no_call_is_the_answer(text: str) -> None:
    reply, notices, _ = replied(text)
    assert (reply.text, reply.calls, notices) == (text, (), [])


def test_long_result_is_cut_to_its_share_of_the_context() -> None:
    def read() -> str:
        """Read a long text."""
        return "word " * 4000

    reply, *_ = replied(tagged('{"name": "read", "arguments": {}}'), "Long.", tools=[read], context=4100)
    [call] = reply.calls
    assert 900 < len(call.result) < 1100
    assert call.result.startswith("word word") and reply.text == "Long."
    two = tagged('{"name": "read", "arguments": {}}', OSLO)
    long, short = replied(two, "Long.", tools=[read, weather], context=4100)[0].calls
    assert 400 < len(long.result) < 600 and short.result == "Dry in Oslo for 1."


def test_results_of_many_rounds_fit_the_context() -> None:
    def read(page: int) -> str:
        """Read a long page."""
        return "word " * 4000

    calls = [tagged(f'{{"name": "read", "arguments": {{"page": {number}}}}}') for number in range(5)]
    reply, *_ = replied(*calls, "Long.", tools=[read], context=8000)
    assert (len(reply.calls), reply.text) == (5, "Long.")
    assert len(reply.calls[4].result) < len(reply.calls[0].result)


numbers = st.integers(100, 10**6)
pieces_of_replies = st.one_of(
    st.builds("It is {}.\n".format, numbers),
    st.builds(tagged, st.builds('{{"name": "weather", "arguments": {{"city": "C{}"}}}}'.format, numbers)),
    st.builds('{{"name": "weather", "arguments": {{"city": "C{}"}}}}\n'.format, numbers),
    st.builds('{{"name": "weather", "arguments": {{"town": "C{}"}}}}\n'.format, numbers),
    st.builds('{{"name": "f{}", "arguments": {{}}}}\n'.format, numbers),
    st.builds('```json\n{{"name": "f{}", "parameters": {{}}}}\n```\n'.format, numbers),
    st.builds('\n<tool_call>\n{{"name": "weather", "arguments": {{"city": "C{}"\n'.format, numbers),
    st.builds('{{"name": "weather", "arguments": {{"city": C{}}}}}\n'.format, numbers),
    st.builds("[weather(C{})]\n".format, numbers),
    st.builds('weather(city="C{}")\n'.format, numbers),
    st.builds("weather(C{}".format, numbers),
    st.sampled_from(["\n", " ", "```\n", "<tool_", "{", "["]),
)


@settings(max_examples=60)
@given(st.lists(pieces_of_replies, max_size=4).map("".join))
def test_nothing_of_a_reply_with_calls_is_lost(text: str) -> None:
    """Numbers stand for everything that a model writes: each is in the text, in a call, or in a notice."""
    cities = re.findall(r'"C\d+"', text)
    assume(len(set(cities)) == len(cities))  # a call that is repeated ends what it writes
    reply, notices, _ = replied(text, "Done.")
    passed_on = f"{reply.text}\n{reply.calls}\n{notices}"
    assert [number for number in re.findall(r"\d{3,}", text) if number not in passed_on] == []


# A schema.


def test_schema_applies_to_the_last_reply_only() -> None:
    answer = '{"coat": false}'
    with opened(f"I look.\n{tagged(OSLO)}", "You need none.", answer) as (model, script):
        reply = model.reply(QUESTION, tools=[weather], schema="coat bool")
        pieces = "".join(reply)
    assert pieces == answer == reply.text == reply.message.content
    assert len(reply.calls) == 1
    assert reply.message.rounds[0].content == "I look."
    assert script.prompts[2] == script.prompts[1]


# Other formats.


def test_functions_need_a_prompt_format() -> None:
    with pytest.raises(UsageError, match="functions need a prompt format"):
        replied("", name=RAW)


# Interruptions.


def test_ctrl_c_ends_a_function_that_sleeps() -> None:
    def wait() -> str:
        """Wait for long."""
        threading.Timer(0.05, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT]).start()
        time.sleep(60)
        return ""

    call = tagged('{"name": "wait", "arguments": {}}')
    with opened(f"I wait.\n{call}") as (model, _):
        reply = model.reply(QUESTION, tools=[wait])
        with pytest.raises(KeyboardInterrupt):
            reply.wait()
    assert (reply.text, reply.calls, reply.is_finished) == ("I wait.\n\n", (), False)


def test_reply_that_is_left_while_it_calls_frees_its_slot() -> None:
    with opened(f"I look.\n{tagged(OSLO)}", "Not asked.") as (model, script):
        with closing(model.reply(QUESTION, tools=[weather]).events()) as events:
            for event in events:
                if isinstance(event, CallEvent):
                    break
        assert len(script.prompts) == 1
        script.replies.insert(0, "Next.")
        assert model.reply("Next?").text == "Next."


def test_reply_continues_from_pending_rounds() -> None:
    done = Round((ToolCall("weather", {"city": "Oslo"}, "Dry."),), "", None, tuple(tagged(OSLO).encode()))
    conversation = replace(Conversation().user(QUESTION), prefill=Message("assistant", "", rounds=(done,)))
    with opened(tagged(ROME), "No coat.") as (model, script):
        reply = model.reply(conversation, tools=[weather]).wait()
    assert [call.arguments["city"] for call in reply.calls] == ["Oslo", "Rome"]
    assert f"{tagged(OSLO)}<|im_end|>\n<|im_start|>tool\nDry.<|im_end|>" in script.prompts[0]
    assert reply.message.content == "No coat."


# Servers.


def test_long_result_is_cut_on_a_server_that_does_not_state_its_context() -> None:
    def weather(city: str) -> str:
        return "word " * 100_000

    with (
        serving_kind(OllamaServer, lambda held, seed: END, context_size=5000) as [server],
        connected(server, messages=True) as engine,
    ):
        model = model_on(engine, chosen_format(SERVER))
        server.arm(body=stream_of({"tool_calls": [piece('{"city": "Oslo"}', "weather", index=0, id="a")]}))
        server.arm(body=stream_of({"content": "Long."}, finish="stop"))
        [call] = model.reply(QUESTION, tools=[weather]).wait().calls
    assert 1500 < len(call.result) < 2100 and "characters omitted" in call.result  # each is a token here
