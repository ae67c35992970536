"""Chat templates embedded in GGUF files, and replies that keep their tokens."""

import datetime
import html
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from random import Random
from typing import Any, NoReturn

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from templates import (
    BARE,
    NO_SYSTEM,
    ONE_TURN,
    TEMPLATES,
    TWO_TURNS,
    UPPER,
    chatml_prompt,
    chosen_format,
    embedded,
    untrusted,
)
from vocabularies import MARKS, marked_up, text_of

from cerebrum_cli.core.conversation import Conversation, Text, Tokens
from cerebrum_cli.core.errors import FormatError, Interrupted
from cerebrum_cli.core.vocabulary import detokenize
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.formats.markers import REASONING_MARKUPS, mentions_markup
from cerebrum_cli.formats.named_templates import OTHER_FORMAT
from cerebrum_cli.formats.template import PRESERVE
from cerebrum_cli.formats.template_sandbox import find_switch, run_template, variables

CONVERSATIONS = {
    "one question": ONE_TURN,
    "two turns": TWO_TURNS,
    "three turns": TWO_TURNS.assistant("John William Strutt.").user("When?"),
    "white space around": Conversation().user("\n  padded \t\n").assistant(" said\n\n").user(" again "),
    "padded differently": Conversation().user("plain").assistant("\n\nsaid").user("\n b").assistant("c ").user(" d"),
    "nothing said": Conversation().user("").assistant("").user(" "),
    "unicode": Conversation().user("Größe 東京 🙂").assistant("é").user("再问一次"),
    "jinja": Conversation().user("{{ 7 * 7 }}{% raise %}").assistant("{# no #}").user("{%- endfor %}"),
    "html": Conversation().user("<b>1 & 2</b>").assistant('"quoted"').user("it's"),
    "private use": Conversation().user("\ue0000\ue001").assistant("\ue000").user("\ue00099\ue001"),
}
SYSTEMS = (None, "Be brief.", " Be\nbrief. \n", "")


def conversations(template: str) -> Iterator[tuple[str, Conversation]]:
    """Yield all conversations that a template supports, with and without a system prompt."""
    for (name, conversation), system in itertools.product(CONVERSATIONS.items(), SYSTEMS):
        if system is None or template not in NO_SYSTEM:
            yield f"{name}, system {system!r}", Conversation(conversation.messages, system)


@cache
def plain_jinja(source: str) -> jinja2.Template:
    """Compile a template with plain Jinja and the functions chat templates expect."""

    def raise_exception(message: str) -> NoReturn:
        raise AssertionError(message)

    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda pattern: datetime.datetime.now().strftime(pattern),
    }
    source = source.replace("{% generation %}", "{% if true %}").replace("{% endgeneration %}", "{% endif %}")
    return environment.from_string(source)


def render_plain(source: str, backend: LlamaBackend, messages: list[dict[str, str]], **values: object) -> str:
    return plain_jinja(source).render(
        messages=messages,
        add_generation_prompt=True,
        bos_token=backend.special_token_text("bos"),
        eos_token=backend.special_token_text("eos"),
        tools=None,
        **values,
    )


@pytest.mark.parametrize("template", TEMPLATES)
def test_template_renders_like_plain_jinja_and_trusts_no_message(template: str, chatml: LlamaBackend) -> None:
    for name, conversation in conversations(template):
        parts = embedded(chatml, template).render(conversation)
        assert text_of(parts) == render_plain(TEMPLATES[template], chatml, conversation.openai_messages), name
        contents = [message["content"] for message in conversation.openai_messages]
        assert sorted(text.strip() for text in untrusted(parts)) == sorted(filter(None, map(str.strip, contents))), name


@pytest.mark.parametrize(
    ("template", "conversation", "reason"),
    [
        ("mistral", Conversation().user("a").user("b"), "conversation roles must alternate"),
        ("llama-2", Conversation().assistant("a").user("b"), "Conversation roles must alternate"),
    ],
)
def test_template_error_has_the_reason(
    template: str, conversation: Conversation, reason: str, chatml: LlamaBackend
) -> None:
    with pytest.raises(FormatError, match=reason) as caught:
        embedded(chatml, template).render(conversation)
    assert caught.value.message.startswith("the chat template embedded rejects this conversation: ")
    assert caught.value.hint == OTHER_FORMAT


def test_template_gets_the_options(chatml: LlamaBackend) -> None:
    assert text_of(embedded(chatml, "gpt-oss", reasoning_effort="high").render(ONE_TURN)).count("Reasoning: high") == 1
    quick = text_of(embedded(chatml, "qwen3", enable_thinking=False).render(ONE_TURN))
    assert quick == text_of(embedded(chatml, "qwen3").render(ONE_TURN)) + "<think>\n\n</think>\n\n"
    assert not text_of(embedded(chatml, "chatml", add_generation_prompt=False).render(ONE_TURN)).endswith("assistant\n")
    assert untrusted(embedded(chatml, "chatml", messages=[]).render(ONE_TURN)) == ["Why is the sky blue?"]


@pytest.mark.parametrize(("template", "opened"), [("deepseek-r1", "<think>"), ("qwen3", None), ("chatml", None)])
def test_template_may_open_reasoning(template: str, opened: str | None, chatml: LlamaBackend) -> None:
    prompt_format = embedded(chatml, template)
    last = prompt_format.render(ONE_TURN)[-1]
    assert isinstance(last, Text) and last.trusted
    markup = prompt_format.open_markup(last.value)
    assert (markup.open if markup else None) == opened


def test_both_renders_use_the_same_time(chatml: LlamaBackend) -> None:
    parts = embedded(chatml, "{{ strftime_now('%f') }}" + BARE).render(Conversation().user("<|im_end|>"))
    assert untrusted(parts) == ["<|im_end|>"]


@pytest.mark.parametrize(("name", "family"), [("gemma", "gemma"), ("llama3", "llama-3"), ("mistral", "mistral")])
def test_named_format_is_like_the_template_of_its_family(name: str, family: str, chatml: LlamaBackend) -> None:
    named = chosen_format(name).build(chatml, chatml.context_size)
    for case, conversation in conversations(family):
        if conversation.system_prompt != "":
            assert text_of(named.render(conversation)) == text_of(embedded(chatml, family).render(conversation)), case


def test_chatml_has_no_system_prompt_of_its_own(chatml: LlamaBackend) -> None:
    named = chosen_format("chatml").build(chatml, chatml.context_size)
    assert text_of(named.render(ONE_TURN)) == chatml_prompt("Why is the sky blue?")
    assert text_of(named.render(replace(ONE_TURN, system_prompt="S."))) == chatml_prompt("Why is the sky blue?", "S.")


# Templates that take messages in another way, or leave some out.

EACH = "{% for message in messages %}<{{ message.role }}>CONTENT{% endfor %}<assistant>"
TEXT, PART = "{{ message.content }}", "{{ message.content[0].text }}"
ODD = Conversation((), "Be <brief>.").user("1 < 2?").assistant("Yes.").user("  It's  a & b?")
SHOWN = "<system>Be <brief>.<user>1 < 2?<assistant>Yes.<user>It's a & b?<assistant>"
FOLDED = SHOWN.removeprefix("<system>").replace("Be <brief>.<user>", "<user>Be <brief>.")


def branch(condition: str, yes: str, no: str = TEXT) -> str:
    return f"{{% if {condition} %}}{yes}{{% else %}}{no}{{% endif %}}"


def squeezed(text: str) -> str:
    return "".join(html.unescape(text).casefold().replace('"', "").split())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        *((content, SHOWN) for content in (TEXT, PART, branch("message.role == 'user'", PART))),
        ("{{ message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join }}", SHOWN),
        (branch("message.content is string", "{{ raise_exception('') }}", PART), SHOWN),
        (branch("message.role == 'system'", "{{ raise_exception('') }}"), FOLDED),
        (branch("message.role == 'system'", "").replace("<{{ message.role }}>", ""), FOLDED),
        *(
            (f"{{{{ message.content{change} }}}}", SHOWN)
            for change in (" | upper | e", ".split() | join(' ')", " | tojson")
        ),
    ],
)
def test_template_gets_messages_as_it_takes_them(content: str, expected: str, chatml: LlamaBackend) -> None:
    prompt_format = embedded(chatml, EACH.replace("CONTENT", content))
    assert squeezed(text_of(prompt_format.render(ODD))).replace("<system><user>", "<user>") == squeezed(expected)
    assert prompt_format.has_system == (expected == SHOWN)


@pytest.mark.parametrize(
    "source",
    [
        *(EACH.replace("CONTENT", text) for text in ("", "{{ message.text }}", "{{ message.content[0].value }}")),
        *(
            EACH.replace("CONTENT", f"{{{{ message.content{change} }}}}")
            for change in ("[:5]", " | length", " | first")
        ),
        *("chatml\n", " ", EACH.replace("CONTENT", branch("message.role == 'human'", TEXT, ""))),
    ],
)
def test_template_that_shows_no_question_is_refused(source: str, chatml: LlamaBackend) -> None:
    with pytest.raises(FormatError, match=r"^the chat template embedded leaves out a question$") as caught:
        embedded(chatml, source).render(ONE_TURN)
    assert "--format (chatml, gemma, llama3, mistral)" in caught.value.hint


SWITCHED = "{{ message.content.replace('/no_think', '').replace('/think', '') | trim }}"


@pytest.mark.parametrize(
    ("content", "questions", "is_rewritten"),
    [
        *(
            (branch("message.content | length > 5", TEXT, ""), (text,), False)
            for text in ("think", "<>", '"\'"', "user")
        ),
        ("{{ message.content | striptags }}", ("What does <think> mean?",), False),
        ("{{ message.content.replace('think', '') }}", ("/no_think Why?",), False),
        (SWITCHED, ("/no_think Why?",), True),
        (SWITCHED, ("Why? /think",), True),
        (SWITCHED, ("/think",), True),
        (SWITCHED, ("What is in a/think?",), False),
        ("{{ message.content | upper | e }}", ("1 < 2?", "Why &lt; 'x'?"), True),
        (
            branch("loop.index0 == 2 and message.content == 'Why?'", "", "{{ message.content | e }}"),
            ("Why?",) * 2,
            False,
        ),
    ],
)
def test_rewritten_question_is_shown_whole_and_in_its_place(
    content: str, questions: tuple[str, ...], is_rewritten: bool, chatml: LlamaBackend
) -> None:
    conversation = Conversation()
    for question in questions:
        conversation = (conversation.assistant("'So.'") if conversation.messages else conversation).user(question)
    prompt_format = embedded(chatml, EACH.replace("CONTENT", content))
    parts = prompt_format.render(conversation)
    assert text_of(parts)
    if not is_rewritten:  # the template would damage it
        assert all(question in text_of(parts) for question in questions)


def test_system_prompt_may_be_nothing_but_a_switch(chatml: LlamaBackend) -> None:
    prompt_format = embedded(chatml, EACH.replace("CONTENT", SWITCHED))
    assert text_of(prompt_format.render(Conversation((), "/no_think").user("Why?"))) == "<system><user>Why?<assistant>"


def test_template_that_leaves_out_an_earlier_message_is_refused(chatml: LlamaBackend) -> None:
    shown = EACH.replace("CONTENT", TEXT)
    for source, what in (
        (shown.replace("messages", "messages[-1:]"), "an earlier reply"),
        (shown.replace("messages", "messages[::-2]"), "an earlier reply"),
        (shown.replace("messages", "messages[:-1]"), "a question"),
        (shown.replace("messages", "messages[1:]"), "a question"),
    ):
        with pytest.raises(FormatError, match=f"leaves out {what}$"):
            embedded(chatml, source).render(Conversation().user("One?").assistant("1.").user("Two?"))


def test_reply_that_the_template_would_truncate_is_shown_whole(chatml: LlamaBackend) -> None:
    source = EACH.replace("CONTENT", branch("message.role == 'user'", TEXT, "{{ message.content.split('.')[0] }}"))
    parts = embedded(chatml, source).render(Conversation().user("One?").assistant("1.").user("Two?"))
    assert untrusted(parts) == ["One?", "1.", "Two?"]


def any_template(random: Random) -> str:
    """A template of parts that are drawn: what it loops over, a condition, and how it writes content."""
    contents = (
        TEXT,
        PART,
        "{{ message['content'] }}",
        "{{ message.text }}",
        "{{ message }}",
        "...",
        "{{ loop.index }}",
    )
    parts = "{% for part in message.content %}{{ part.text }}{% endfor %}"
    filters = (
        "",
        "",
        " | trim",
        " | upper",
        " | e",
        " | tojson",
        "[:9]",
        " | first",
        " | length",
        " | replace('a', '')",
    )
    roles = ("user", "user", "assistant", "system", "human")
    content = random.choice((*contents, parts)).replace(" }}", random.choice(filters) + " }}")
    condition = random.choice(
        (
            *("true", "true", "loop.last", "loop.first", "message.content is string", "message.content is not string"),
            *("messages[0].role == 'system'", f"message.role == '{random.choice(roles)}'", "loop.index0 % 2 == 0"),
        )
    )
    other = random.choice((TEXT, "", content, "{{ raise_exception('no') }}", "a question?"))
    over = random.choice(("messages", "messages", "messages", "messages[1:]", "messages[-1:]", "messages | list"))
    source = EACH.replace("CONTENT", branch(condition, content, other)).replace("in messages", f"in {over}")
    return random.choice(("", "a question? ", "{{ bos_token }}")) + source


def test_prompts_of_any_template_have_the_questions(chatml: LlamaBackend) -> None:
    outcomes = Counter[bool]()
    for seed in range(200):
        random = Random(seed)
        prompt_format = embedded(chatml, any_template(random))
        conversation = Conversation((), random.choice((None, "Be a bee.")))
        texts = [random.choice(("A question?", "1 < 2", "Is it\na b & c?", "a")) for _ in range(random.choice((1, 3)))]
        for text in texts:
            is_question = len(conversation.messages) % 2 == 0
            conversation = conversation.user(text) if is_question else conversation.assistant(text)
        try:
            shown = text_of(prompt_format.render(conversation))
        except FormatError:
            outcomes[False] += 1
            continue
        outcomes[True] += 1
        for text in filter(None, [*texts[::2], conversation.system_prompt]):
            assert squeezed(text) in squeezed(shown.replace("\\n", "\n")), prompt_format
    assert min(outcomes.values()) > 30


# Replies as tokens in the prompt.


@given(
    template=st.sampled_from([*TEMPLATES, BARE, UPPER]),
    options=st.sampled_from([{}, {"enable_thinking": False}]),
    data=st.data(),
)
def test_next_prompt_extends_prompt_and_reply(
    template: str, options: dict[str, Any], data: st.DataObject, chatml: LlamaBackend
) -> None:
    prompt_format = embedded(chatml, template, **options)
    sampled = st.lists(st.integers(0, chatml.size - 1).filter(lambda token: not chatml.is_eog(token)), max_size=8)
    texts = marked_up.map(lambda text: chatml.tokenize((Text(text),)))
    conversation = Conversation(keeps_reasoning=True)
    evaluated: tuple[int, ...] = ()
    for _ in range(3):
        conversation = conversation.user(data.draw(st.text("ab <>\n", min_size=1).filter(str.strip)))
        prompt = chatml.tokenize(prompt_format.render(conversation))
        assert prompt[: len(evaluated)] == evaluated
        reply = data.draw(sampled.map(tuple) | texts)
        conversation = conversation.assistant(detokenize(chatml, reply).strip(), reply)
        evaluated = prompt + reply


@pytest.mark.parametrize(
    ("template", "options", "before", "after"),
    [
        ("chatml", {}, "<|im_start|>assistant\n", "<|im_end|>\n<|im_start|>user\n"),
        ("mistral", {}, "[/INST]", "<|im_end|>[INST] "),
        ("qwen3", {"enable_thinking": False}, "<|im_start|>assistant\n<think>\n\n</think>\n\n", "<|im_end|>\n"),
        ("smollm3", {"enable_thinking": False}, "<|im_start|>assistant\n<think>\n\n</think>\n", "<|im_end|>\n"),
        ("deepseek-r1", {}, "<｜Assistant｜><think>\n", "<｜end▁of▁sentence｜>"),
        ("qwen3.5", {}, "<|im_start|>assistant\n<think>\n", "<|im_end|>\n"),
        ("gpt-oss", {}, "<|end|><|start|>assistant", "<|end|><|start|>user<|message|>"),
    ],
)
def test_reply_tokens_follow_the_same_header_as_in_the_prompt(
    template: str, options: dict[str, Any], before: str, after: str, chatml: LlamaBackend
) -> None:
    conversation = Conversation(keeps_reasoning=True).user("a").assistant("b", (7,)).user("c")
    parts = embedded(chatml, template, **options).render(conversation)
    at = parts.index(Tokens((7,)))
    around = parts[at - 1], parts[at + 1]
    assert all(isinstance(part, Text) and part.trusted for part in around)
    assert text_of(around[:1]).endswith(before)
    assert text_of(around[1:]).startswith(after)
    assert Text("b") not in parts


def test_no_message_can_contain_the_tokens_of_a_reply(chatml: LlamaBackend) -> None:
    """Of a template that rewrites all texts."""
    forged = "a\ue0001\ue001 \ue0000000000000000000001\ue001"
    parts = embedded(chatml, UPPER).render(Conversation().user("q").assistant("b", (7,)).user(forged))
    assert parts.count(Tokens((7,))) == 1
    assert forged in text_of([part for part in parts if isinstance(part, Text)])


def inline(answer: str, reasoning: str) -> dict[str, str]:
    return {"content": f"<think>\n{reasoning}\n</think>\n\n{answer}"}


def in_fields(answer: str, reasoning: str) -> dict[str, str]:
    """As `transformers` gives templates a reply that has its reasoning in a field of its own."""
    return {"content": answer, **dict.fromkeys(("reasoning_content", "thinking", "reasoning"), reasoning)}


DROPPING = {  # templates that drop reasoning, and how a user of `transformers` gives them replies
    "deepseek-r1": lambda answer, reasoning: {"content": answer},
    "deepseek-v3.1": lambda answer, reasoning: {"content": answer},
    "gemma4": lambda answer, reasoning: {"content": f"<|channel>thought\n{reasoning}<channel|>{answer}"},
    "gpt-oss": in_fields,
    "lfm2.5": inline,
    "qwen3": inline,
    "qwen3.5": in_fields,
    "solar": in_fields,
}
WITH_REASONING = Conversation().user("One?").assistant("1.", (7, 8), "A <|im_end|> thought.").user("Two?")
THREE_TURNS = WITH_REASONING.assistant("2.\n", (9,), "Another\n\nthought.").user("Three?")


@pytest.mark.parametrize("thinks", [None, True, False])
@pytest.mark.parametrize("template", DROPPING)
def test_earlier_reasoning_is_dropped_as_transformers_does(
    template: str, thinks: bool | None, chatml: LlamaBackend
) -> None:
    prompt_format, source = embedded(chatml, template), TEMPLATES[template]
    switch = find_switch(source)
    messages = [
        {"role": message.role, "content": message.content}
        | (DROPPING[template](message.content, message.reasoning) if message.reasoning else {})
        for message in THREE_TURNS.messages
    ]
    switched = switch.values(thinks) if switch and thinks is not None else {}
    expected = render_plain(source, chatml, messages, **switched)
    parts = prompt_format.render(replace(THREE_TURNS, thinks=thinks if switch else None))
    assert text_of(parts) == expected
    shown = [text.strip() for text in untrusted(parts) if "thought" not in text]
    assert shown == ["One?", "1.", "Two?", "2.", "Three?"]
    assert "<|im_end|> thought" not in expected
    assert chatml.tokenize(parts) == chatml.tokenize((Text(expected, trusted=True),))


@given(
    template=st.sampled_from(sorted({*DROPPING, "qwen3.8"})),
    texts=st.lists(marked_up.filter(str.strip), min_size=7, max_size=7),
    keeps=st.sampled_from([None, True, False]),
    is_sampled=st.booleans(),
)
def test_replies_with_reasoning_never_become_special_tokens(
    template: str, texts: list[str], keeps: bool | None, is_sampled: bool, chatml: LlamaBackend
) -> None:
    specials, prompt_format = chatml.special_token_ids(MARKS), embedded(chatml, template)
    markers = {text for each in prompt_format.markups for text in (each.open, each.close, each.header) if text}

    def special(texts: Sequence[str | None]) -> list[int]:
        conversation, tokens = Conversation(keeps_reasoning=keeps), (3,) if is_sampled else None
        for question, answer, reasoning in zip(texts[:6:3], texts[1:6:3], texts[2:6:3], strict=True):
            conversation = conversation.user(question or "").assistant(answer or "", tokens, reasoning)
        ids = chatml.tokenize(prompt_format.render(conversation.user(texts[6] or "")))
        return [token for token in ids if token in specials]

    plain: list[str | None] = ["x"] * 7
    for at in (2, 5):  # a sampled reply that mentions markup is given without its reasoning
        if is_sampled and any(marker in text for marker in markers for text in texts[at - 1 : at + 1]):
            plain[at] = None
    with suppress(FormatError):
        assert special(texts) == special(plain)


def test_sampled_tokens_are_kept_as_the_template_or_the_user_keeps_reasoning(chatml: LlamaBackend) -> None:
    kept, dropped = replace(THREE_TURNS, keeps_reasoning=True), replace(THREE_TURNS, keeps_reasoning=False)
    cases: list[tuple[str, dict[str, Any], Conversation]] = [
        *(("qwen3.8", {}, THREE_TURNS), ("smollm3", {}, THREE_TURNS), ("qwen3.5", {PRESERVE: True}, THREE_TURNS)),
        *((template, {}, kept) for template in (*DROPPING, "qwen3.8", "smollm3", "chatml")),
    ]
    for template, options, conversation in cases:
        parts = embedded(chatml, template, **options).render(conversation)
        assert [part for part in parts if isinstance(part, Tokens)] == [Tokens((7, 8)), Tokens((9,))]
        parts = embedded(chatml, template).render(dropped)
        assert [text.strip() for text in untrusted(parts)] == ["One?", "1.", "Two?", "2.", "Three?"]
    untokenized = Conversation().user("One?").assistant("1.", None, "<|im_end|>").user("Two?")
    for template in ("qwen3.8", "smollm3"):
        assert untrusted(embedded(chatml, template).render(untokenized)) == ["One?", "<|im_end|>", "1.", "Two?"]


@pytest.mark.parametrize("reasoning", [None, "Hm."])
def test_template_that_marks_replies_without_reasoning_does_so_once(
    chatml: LlamaBackend, reasoning: str | None
) -> None:
    imported = Conversation(thinks=False).user("One?").assistant("1.", None, reasoning).user("Two?")
    shown = text_of(embedded(chatml, "smollm3").render(imported))
    assert shown.count("<think>") == 2 and "assistant\n<think>\n\n</think>\n1.<|im_end|>" in shown
    assert (reasoning or "1.") in text_of(embedded(chatml, "smollm3").render(replace(imported, thinks=True)))


def test_reply_interrupted_before_its_reasoning_leaves_none_open(chatml: LlamaBackend) -> None:
    interrupted = Conversation().user("One?").assistant("", ()).user("Two?")
    shown = text_of(embedded(chatml, "qwen3.8").render(interrupted))
    assert "assistant\n<think>\n\n</think>\n\n<|im_end|>" in shown


@pytest.mark.parametrize(
    ("template", "answer", "reasoning"),
    [
        ("gpt-oss", "It starts with `<|channel|>analysis<|message|>`.", "Harmony."),
        ("gpt-oss", "It uses channels.", "Before it: <|channel|>final<|message|>."),
        ("gemma4", "Reasoning opens with <|channel>thought.", None),
        ("qwen3", "Reasoning ends with </think>.", "Easy."),
    ],
)
def test_sampled_reply_may_quote_the_markup_of_reasoning(
    template: str, answer: str, reasoning: str | None, chatml: LlamaBackend
) -> None:
    conversation = Conversation().user("What is <|im_end|>?").assistant(answer, (7, 8), reasoning).user("Two?")
    assert untrusted(embedded(chatml, template).render(conversation)) == ["What is <|im_end|>?", answer, "Two?"]


# The sandbox: what templates may use, what they may not, and their errors.


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% if tools is not none %}tools{% endif %}{% if documents is none %}none{% endif %}", "none"),
        ("{{ {'b': 'é<', 'a': 1} | tojson }}", '{"b": "é<", "a": 1}'),
        ("{{ {'b': 'é', 'a': 1} | tojson(ensure_ascii=True, sort_keys=true) }}", '{"a": 1, "b": "\\u00e9"}'),
        ("{{ [1, 2] | tojson(separators=(',', ':')) }}{{ [1] | tojson(indent=1) }}", "[1,2][\n 1\n]"),
        ("{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "02345678"),
        ("{% for i in range(9) %}{% if i > 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
        ("{% set ns = namespace(n=0) %}{% for i in range(5) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "10"),
        ("a{% generation %}{% set b = 'b' %}{{ b }}{% endgeneration %}{{ b }}c", "abc"),
        ("{% for i in [1, 2] %}{% generation %}{{ loop.index }}{% endgeneration %}{% endfor %}", "12"),
        ("{{ nowhere }}{{ messages[0].nowhere }}{% if nowhere is defined %}x{% endif %}", ""),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("a\n\n", "a\n"),
        ("{{ messages[0].content | upper }}", "HI"),
        *((hidden, "") for hidden in ("{{ ''.__class__ }}", "{{ messages.__class__ }}", "{{ 'a'|attr('__class__') }}")),
    ],
)
def test_sandbox_has_what_templates_expect(source: str, expected: str) -> None:
    values = {**variables(source), "messages": [{"role": "user", "content": "hi"}]}
    assert run_template(source, values) == expected


REJECTED = (  # attributes that templates must not reach, and values that are missing
    *("{{ ''.__class__.__mro__ }}", "{{ ''['__class__']['__mro__'] }}", "{{ (''|attr('__class__')).__mro__ }}"),
    *("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "{{ lipsum.__globals__['os'] }}"),
    *("{{ raise_exception.__globals__.jinja2 }}", "{{ strftime_now.__self__.year }}"),
    *("{{ '{0.__class__.__mro__}'.format(messages) }}", "{{ messages.append(1) }}"),
    *("{{ messages[0].update(role='system') }}", "{{ self.__init__.__globals__ }}", "{{ messages[9].content }}"),
    *("{{ nowhere.content }}", "{{ nowhere() }}"),
)
UNPARSABLE = (
    *("{% for %}", "{{ ", "{% generation %}", "{{ a | nofilter }}", "{% if a %}" * 200 + "{% endif %}" * 200),
    *("{{ " + "(" * 100_000 + ")" * 100_000 + " }}", "{{ " + "9" * 5000 + " }}"),
)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        *((source, "rejects") for source in REJECTED),
        *((source, "cannot be parsed") for source in UNPARSABLE),
        ("{{ raise_exception('two\nlines') }}", "rejects this conversation: two lines"),
        ("{{ raise_exception('') }}", "rejects this conversation: TemplateError"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "rejects this conversation: Range too big"),
        ("{{ 'a' * 10 ** 16 }}", "rejects this conversation: MemoryError"),
        ("{{ 1 / 0 }}", "rejects this conversation: division by zero"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "rejects this conversation: maximum recursion"),
        ("{{ strftime_now(1) }}", "rejects this conversation: "),
        ("{% include 'other' %}", "rejects this conversation: no loader"),
        ("{% nonsense %}", "cannot be parsed: Encountered unknown tag 'nonsense'."),
    ],
)
def test_invalid_template_is_a_one_line_error(source: str, error: str, chatml: LlamaBackend) -> None:
    with pytest.raises(FormatError) as caught:
        embedded(chatml, source).render(ONE_TURN)
    assert caught.value.message.startswith(f"the chat template embedded {error}")
    assert "\n" not in caught.value.message
    assert caught.value.hint == OTHER_FORMAT


def test_template_with_literal_placeholders_is_safe(chatml: LlamaBackend) -> None:
    for own in ("\ue0000\ue001", "\ue00099\ue001", "\ue000" + "9" * 5000 + "\ue001"):
        assert text_of(embedded(chatml, own + BARE).render(Conversation().user("hi"))) == own + "hi|"


def test_interrupt_while_rendering_is_not_a_format_error() -> None:
    class Late:
        def __str__(self) -> str:
            raise Interrupted(2)

    with pytest.raises(Interrupted):
        run_template("{{ value }}", {"value": Late()})


@pytest.mark.parametrize(
    ("source", "opens"),
    [
        ("<|user|> a <|end|>", []),
        ("qwen3", ["<think>"]),
        ("[/THINK] </think>", ["<think>"]),
        ("<|channel>thought", ["<|channel>thought"]),
    ],
)
def test_template_mentions_markup_by_what_nothing_else_means(source: str, opens: list[str]) -> None:
    assert [
        markup.open for markup in REASONING_MARKUPS if mentions_markup(TEMPLATES.get(source, source), markup)
    ] == opens


# Reasoning of earlier replies, and texts that templates look into.

SAID = Conversation().user("2+2?").assistant("4", None, "Two and two.").user("3+3?")
RENDERED_TURNS = "{% for message in messages %}<|{{ message.role }}|>BEFORE{{ message.content }}<|end|>{% endfor %}"


@pytest.mark.parametrize(
    ("source", "reply"),
    [
        (RENDERED_TURNS.replace("BEFORE", ""), "4"),  # its end of turns also ends reasoning of other families
        (RENDERED_TURNS.replace("BEFORE", "<think></think>"), "<think></think>4"),
        (
            "{# <|START_THINKING|> #}" + RENDERED_TURNS.replace("BEFORE", "<|START_RESPONSE|>"),
            "<|START_RESPONSE|>4",
        ),
        (
            RENDERED_TURNS.replace("BEFORE", "").replace("content }}", "content.split('</think>')[-1] }}"),
            "4",
        ),
    ],
)
def test_reasoning_is_written_only_in_markup_that_the_template_leaves_to_it(
    source: str, reply: str, chatml: LlamaBackend
) -> None:
    assert f"2+2?<|end|><|assistant|>{reply}<|end|>" in text_of(embedded(chatml, source).render(SAID))


SPELLING = ["qwen3", "qwen3.8", "lfm2.5", "smollm3", "deepseek-r1", "granite", "chatml"]


@pytest.mark.parametrize("template", SPELLING)
def test_reasoning_that_a_reply_begins_with_is_read_like_that_in_a_field(template: str, chatml: LlamaBackend) -> None:
    prompt_format = embedded(chatml, TEMPLATES[template] + "{# <think> #}")
    for text, reasoning in (("<think>\nTwo.\n</think>\n\n4", "Two."), ("\n<think></think>4", None)):
        spelled = Conversation().user("2+2?").assistant(text).user("3+3?")
        apart = Conversation().user("2+2?").assistant("4", None, reasoning).user("3+3?")
        assert prompt_format.render(spelled) == prompt_format.render(apart)


@pytest.mark.parametrize("text", ["<think>\nTwo and", "<think>", "<think>\n\n</think>\n\n4", "<think>Two.</think>4"])
@pytest.mark.parametrize("template", SPELLING)
def test_reply_that_has_begun_with_reasoning_is_continued(template: str, text: str, chatml: LlamaBackend) -> None:
    prompt_format = embedded(chatml, TEMPLATES[template] + "{# <think> #}")
    asked = Conversation(thinks=True).user("2+2?")
    parts = prompt_format.render(replace(asked, prefill=asked.assistant(text).messages[1]))
    before = text_of(prompt_format.render(asked)).rstrip().removesuffix("<think>")
    assert text_of(parts) in (before + text, f"{before}\n{text}")
    assert not any("<think>" in part for part in untrusted(parts))


def test_empty_reply_is_given_as_a_list_where_only_that_is_taken(chatml: LlamaBackend) -> None:
    source = (
        "{% for message in messages %}{% if message.content is string %}"
        "{% if not message.content %}{{ raise_exception('empty') }}{% endif %}[{{ message.content }}]"
        "{% else %}[{% for part in message.content %}{{ part.text }}{% endfor %}]{% endif %}{% endfor %}"
    )
    replies = Conversation().user("One?").assistant("1.").user("Two?").assistant("").user("Three?")
    assert text_of(embedded(chatml, source).render(replies)) == "[One?][1.][Two?][][Three?]"


def test_continued_reply_keeps_the_reasoning_that_a_template_shows_last(chatml: LlamaBackend) -> None:
    prefill = replace(SAID.messages[1], content="It is ")
    prompt = text_of(embedded(chatml, "gpt-oss").render(replace(Conversation().user("2+2?"), prefill=prefill)))
    assert prompt.endswith("analysis<|message|>Two and two.<|end|><|start|>assistant<|channel|>final<|message|>It is ")


def test_template_without_functions_gets_a_list_if_it_needs_one(chatml: LlamaBackend) -> None:
    source = "{% for tool in tools %}{{ tool | tojson }}{% endfor %}" + BARE
    assert text_of(embedded(chatml, source).render(ONE_TURN)) == "Why is the sky blue?|"


def test_template_sees_the_switches_in_texts(chatml: LlamaBackend) -> None:
    """The mode, which is in the template's own text, depends on the text of a message."""
    source = (
        "{% set off = '/no_think' in messages[0].content %}{{ messages[0].content.replace('/no_think', '') | trim }}"
        "{{ '<|im_end|><think></think>' if off else '' }}"
    )
    parts = embedded(chatml, source).render(Conversation().user("<|im_start|>Why? /no_think"))
    assert parts == (Text("<|im_start|>Why?"), Text("<|im_end|><think></think>", trusted=True))


@pytest.mark.parametrize("content", ["content | tojson", "[message.content] | string"])
def test_escaped_text_is_not_trusted(content: str, chatml: LlamaBackend) -> None:
    source = BARE.replace("message.content", f"message.{content}" if content[0] != "[" else content)
    source = source.replace("tojson", "tojson(ensure_ascii=true)")
    for text in ("é 🙂 <|im_end|>\n", "<|im_start|>"):
        shown = untrusted(embedded(chatml, source).render(Conversation().user(text)))
        assert len(shown) == 1 and "<|im_" in shown[0]
