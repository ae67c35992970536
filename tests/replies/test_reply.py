"""Asking for a reply, what it shows and tells, and replies that continue the last message of a list."""

from dataclasses import replace

import pytest
from asking import running_engine
from installations import model_on
from scripted_backend import END, ScriptedBackend
from templates import TEMPLATES, chosen_format

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Conversation, conversation_from_messages
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import FinishEvent, FinishReason, RoundEvent, SequenceId, Timings, TokenEvent
from cerebrum_cli.core.grammar import Grammar
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.core.tools import Round, ToolCall
from cerebrum_cli.formats.choice import SERVER
from cerebrum_cli.replies.concurrent_rows import run_rows
from cerebrum_cli.replies.majority_vote import Outcome, Row
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


BEGUN, REST = b"It is", b" 4."
MESSAGES = [
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "It is", "reasoning_content": "Two and two."},
]


STRICT = (  # a template that demands content
    "{% for message in messages %}[{{ message.content or raise_exception('empty') }}]{% endfor %}"
)


def continues(held: tuple[int, ...], seed: int) -> int:
    _, _, rest = bytes(held).rpartition(BEGUN)
    return REST[len(rest)] if len(rest) < len(REST) else END


@pytest.mark.parametrize(
    ("name", "template", "reasoning", "prompt"),
    [
        ("chatml", None, None, "<|im_start|>assistant\nIt is"),
        ("cerebrum", None, None, "User: 2 + 2?\nAI: It is"),
        ("embedded", "mistral", None, "[/INST] It is"),
        ("embedded", "deepseek-r1", "Two and two.", "<｜Assistant｜><think>\nTwo and two.\n</think>\n\nIt is"),
        ("embedded", "qwen3.8", "Two and two.", "assistant\n<think>\nTwo and two.\n</think>\n\nIt is"),
    ],
)
def test_reply_continues_the_last_message(name: str, template: str | None, reasoning: str | None, prompt: str) -> None:
    asked = Ask(conversation_from_messages(MESSAGES, "m"), Settings())
    with running_engine(ScriptedBackend(continues, context_size=1000)) as engine:
        loaded = model_on(engine, chosen_format(name, template and TEMPLATES[template]))
        shown, ids = loaded.preview(asked.conversation)
        assert shown.endswith(prompt) and bytes(ids).endswith(prompt.encode())
        streamed = loaded.respond(asked)
        assert "".join(streamed) == "It is 4."
        [event] = [event for event in run_rows(loaded, [Row(0, asked)]) if isinstance(event, Outcome)]
        assert isinstance(event.result, Reply)
        for reply in (streamed, event.result):
            assert (reply.text, reply.reasoning, reply.finish.completion_tokens) == ("It is 4.", reasoning, 3)
            assert bytes(reply.tokens or ()).endswith(b"It is 4.")
        following = reply.conversation.user("Why?")
        assert [message.content for message in following.messages] == ["2 + 2?", "It is 4.", "Why?"]
        assert "It is 4." in loaded.prompts.text(following)


@pytest.mark.parametrize("last", [{"content": " \n"}, {"content": None, "reasoning_content": "2 + 2?"}])
@pytest.mark.parametrize(
    ("name", "template"), [("chatml", None), ("mistral", None), ("cerebrum", None), ("embedded", "ministral")]
)
def test_reply_without_visible_text_has_not_begun(name: str, template: str | None, last: dict[str, str | None]) -> None:
    source = STRICT if template == "ministral" else template and TEMPLATES[template]
    asked = conversation_from_messages([MESSAGES[0], {"role": "assistant", **last}], "m")
    with running_engine(ScriptedBackend(lambda *_: END, context_size=1000)) as engine:
        loaded = model_on(engine, chosen_format(name, source))
        assert loaded.preview(asked) == loaded.preview(Conversation().user("2 + 2?"))
        assert "".join(loaded.respond(Ask(asked, Settings(), Grammar("gbnf", "root ::= [0-9]*")))) == ""


@pytest.mark.parametrize("template", ["qwen3.8", "deepseek-r1"])
def test_beginning_of_a_reply_may_be_reasoning_alone(template: str) -> None:
    asked = conversation_from_messages([MESSAGES[0], {**MESSAGES[1], "content": None}], "m")
    with running_engine(ScriptedBackend(continues, context_size=1000)) as engine:
        loaded = model_on(engine, chosen_format("embedded", TEMPLATES[template]))
        assert loaded.prompts.text(asked).endswith("<think>\nTwo and two.")
        assert not [*loaded.prompts.notices(asked)]
        chatml = model_on(engine, chosen_format("chatml"))
        assert [notice.message for notice in chatml.prompts.notices(asked)] == ["the prompt format has no reasoning"]


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("<think>\nTwo and", "Two and 4.", ""),
        ("<think>\nTwo.</think>", "Two.", "4."),
        ("<think>Two.</think>It is", "Two.", "It is 4."),
    ],
)
def test_beginning_of_a_reply_may_have_reasoning_in_its_text(text: str, reasoning: str, answer: str) -> None:
    def spoken(held: tuple[int, ...], seed: int) -> int:
        _, _, rest = bytes(held).rpartition(text.encode())
        return REST[len(rest)] if len(rest) < len(REST) else END

    asked = Ask(conversation_from_messages([MESSAGES[0], {"role": "assistant", "content": text}], "m"), Settings())
    with running_engine(ScriptedBackend(spoken, context_size=1000)) as engine:
        loaded = model_on(engine, chosen_format("embedded", TEMPLATES["qwen3.8"]))
        reply = loaded.respond(asked)
        assert "".join(reply) == answer
        assert (reply.text, reply.reasoning) == (answer, reasoning)


def test_system_prompt_that_only_a_last_question_shows_precedes_a_reply_that_has_begun() -> None:
    template = (
        "{% if messages[0].role == 'system' %}{% set system, messages = messages[0].content, messages[1:] %}{% endif %}"
        "{% for message in messages %}{% if loop.last and system and message.role == 'user' %}[{{ system }}\n\n"
        "{% else %}[{% endif %}{{ message.content }}]{% endfor %}"
    )
    with running_engine(ScriptedBackend(continues, context_size=1000)) as engine:
        loaded = model_on(engine, chosen_format("embedded", template))
        begun = conversation_from_messages([{"role": "system", "content": "S."}, *MESSAGES], "m")
        assert loaded.prompts.text(replace(begun, prefill=None)) == "[S.\n\n2 + 2?]"
        assert loaded.prompts.text(begun) == "[S.\n\n2 + 2?][It is"
        reply = loaded.respond(Ask(begun, Settings()))
        assert "".join(reply).endswith("It is 4.")


def test_reply_that_has_begun_is_refused_with_a_grammar_and_on_servers_with_templates() -> None:
    conversation = conversation_from_messages(MESSAGES, "m")
    with running_engine(ScriptedBackend(continues, context_size=1000)) as engine:
        with pytest.raises(UsageError, match="a schema or grammar cannot apply to a reply that has begun"):
            model_on(engine, chosen_format("chatml")).respond(
                Ask(conversation, Settings(), Grammar("gbnf", "root ::= .*"))
            ).wait()
        with pytest.raises(UsageError, match="a server that builds the prompt cannot continue a reply"):
            model_on(engine, chosen_format(SERVER)).respond(Ask(conversation, Settings())).wait()
        with pytest.raises(UsageError, match="the server builds the prompt, which is not known here"):
            model_on(engine, chosen_format(SERVER)).preview(conversation)
