"""Replies that continue the last message of a list."""

from dataclasses import replace

import pytest
from asking import running_engine
from installations import model_on
from scripted_backend import END, ScriptedBackend
from templates import TEMPLATES, chosen_format

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Conversation, conversation_from_messages
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.grammar import Grammar
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.formats.choice import SERVER
from cerebrum_cli.replies.concurrent_rows import run_rows
from cerebrum_cli.replies.majority_vote import Outcome, Row
from cerebrum_cli.replies.reply import Reply

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
    ("name", "template"),
    [("chatml", None), ("mistral", None), ("cerebrum", None), ("embedded", "ministral")],
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
