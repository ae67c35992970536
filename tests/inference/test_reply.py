"""Collecting a reply from its events, and the objects that --json prints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cerebrum_cli.core.events import (
    Channel,
    Event,
    FinishEvent,
    FinishReason,
    LoadEvent,
    SequenceId,
    Timings,
    TokenEvent,
)
from cerebrum_cli.engine.engine import Capabilities
from cerebrum_cli.inference.reply import (
    Preview,
    Reply,
    ReplyCollector,
    prompt_object,
    reply_notice,
    reply_object,
)

SEQUENCE = SequenceId(0)
FINISH = FinishEvent(
    sequence=SEQUENCE,
    reason="stop",
    prompt_tokens=20,
    cached_tokens=4,
    completion_tokens=5,
    seed=7,
    context_size=256,
    timings=Timings(load_s=1.0, prefill_s=0.5, ttft_s=0.75, decode_s=0.3, prefill_tokens=16, decode_steps=4),
)


def tokens(*texts: tuple[Channel, str]) -> list[Event]:
    return [TokenEvent(SEQUENCE, text, channel) for channel, text in texts]


def collect(*events: Event) -> ReplyCollector:
    collector = ReplyCollector()
    for event in events:
        collector.emit(event)
    collector.close()
    return collector


def test_collector_has_a_reply_after_the_finish_event() -> None:
    events = tokens(("answer", "Four"), ("answer", ""), ("answer", "."))
    assert collect(LoadEvent(1.0), *events).reply is None
    reply = collect(LoadEvent(1.0), *events, FINISH).reply
    assert reply is not None
    assert (reply.text, reply.reasoning, reply.finish) == ("Four.", None, FINISH)


def test_collector_separates_reasoning_and_answer() -> None:
    reply = collect(
        *tokens(("thinking", "The answer "), ("thinking", "is 5."), ("answer", "So the answer is 4.")), FINISH
    ).reply
    assert reply is not None
    assert (reply.text, reply.reasoning, reply.final_answer) == ("So the answer is 4.", "The answer is 5.", "4")


def test_reply_may_be_empty() -> None:
    reply = collect(FINISH).reply
    assert reply is not None
    assert (reply.text, reply.reasoning, reply.final_answer) == ("", None, None)


def test_reply_object_has_all_keys() -> None:
    reply = collect(*tokens(("thinking", "hm"), ("answer", "The answer is 4.")), FINISH).reply
    assert reply is not None
    assert reply_object(reply, "cerebrum-7b", Path("7b.gguf"), "cerebrum", "4") == {
        "model": "cerebrum-7b",
        "file": "7b.gguf",
        "format": "cerebrum",
        "text": "The answer is 4.",
        "final_answer": "4",
        "extracted": None,
        "finish_reason": "stop",
        "thought_closed_at": None,
        "prompt_tokens": 20,
        "cached_tokens": 4,
        "completion_tokens": 5,
        "seed": 7,
        "reasoning": "hm",
        "votes": None,
        "timings": {
            "load_s": 1.0,
            "prefill_s": 0.5,
            "ttft_s": 0.75,
            "decode_s": 0.3,
            "prompt_tokens_per_second": 32.0,
            "tokens_per_second": 13.33,
            "draft_n": 0,
            "draft_n_accepted": 0,
        },
    }


def test_timings_without_time_have_zero_speed() -> None:
    assert (Timings().prompt_tokens_per_second, Timings().tokens_per_second) == (0.0, 0.0)


def test_prompt_object_has_all_keys() -> None:
    shown = prompt_object(Preview("<s>é", (1, 28797)), "m", "raw")
    assert json.loads(json.dumps(shown)) == {
        "prompt": "<s>é",
        "prompt_tokens": 2,
        "token_ids": [1, 28797],
        "format": "raw",
        "model": "m",
    }


@pytest.mark.parametrize(
    ("text", "reasoning", "reason", "message"),
    [
        ("Four.", None, "stop", None),
        ("Fo", None, "cancelled", None),
        ("Fo", None, "length", "answer truncated at 5 tokens"),
        ("", "Hm", "length", "answer truncated at 5 tokens of reasoning"),
        ("Fo", None, "context", "answer truncated: the context of 256 tokens is full"),
        (" \n", None, "stop", "the model's answer is blank"),
    ],
)
def test_reply_notice_names_the_exhausted_limit(
    text: str, reasoning: str | None, reason: FinishReason, message: str | None
) -> None:
    notice = reply_notice(Reply(text, reasoning, replace(FINISH, reason=reason)), "raise --ctx")
    assert (notice and notice.message) == message


@pytest.mark.parametrize(
    ("capabilities", "advice"),
    [
        (Capabilities(), "raise --ctx"),
        (Capabilities(larger_context="restart the server with a larger -c"), "restart the server with a larger -c"),
    ],
)
def test_full_context_advice_is_that_of_the_engine(capabilities: Capabilities, advice: str) -> None:
    notice = reply_notice(Reply("Fo", None, replace(FINISH, reason="context")), capabilities.larger_context)
    assert notice and notice.hint == f"{advice}, or ask for less"
