"""Asking for a reply, collecting it from its events, and the objects that --json prints."""

import pytest

from cerebrum_cli.core.events import FinishEvent, FinishReason, RoundEvent, SequenceId, Timings, TokenEvent
from cerebrum_cli.core.tools import Round, ToolCall
from cerebrum_cli.replies.reply import Reply

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


def test_reply_object_has_texts_counts_and_timings() -> None:
    reply = Reply()
    for event in (TokenEvent(SEQUENCE, "hm", "thinking"), TokenEvent(SEQUENCE, "The answer is 4."), FINISH):
        assert not reply.is_finished
        reply.emit(event)
    answer = reply.as_object("4")
    assert (answer["text"], answer["reasoning"], answer["final_answer"]) == ("The answer is 4.", "hm", "4")
    assert (answer["prompt_tokens"], answer["completion_tokens"]) == (20, 5)
    assert reply.timings_object == {
        "load_s": 1.0,
        "prefill_s": 0.5,
        "ttft_s": 0.75,
        "decode_s": 0.3,
        "prompt_tokens_per_second": 32.0,
        "tokens_per_second": 13.33,
        "draft_n": 0,
        "draft_n_accepted": 0,
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
    reply = Reply()
    reply.begin((), [("thinking", reasoning or ""), ("answer", text)])
    reply.emit(FINISH._replace(reason=reason))
    notice = reply.notice()
    assert (notice and notice.message) == message
    assert reason != "context" or (notice and notice.hint == "raise --ctx, or ask for less")


def test_reply_notice_reports_nothing_after_the_results_of_functions() -> None:
    reply = Reply()
    called = Round((ToolCall("python", {"code": "print(42)"}, "42"),), "Let me compute.")
    for event in (TokenEvent(SEQUENCE, "Let me compute."), RoundEvent(called), FINISH):
        reply.emit(event)
    notice = reply.notice()
    assert notice and notice.message == "the model wrote nothing after the results of its functions"
