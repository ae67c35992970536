"""Reasoning that is ended after a number of tokens, or when the user asks for the answer."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import dumps, loads
from typing import Any

import pytest
from asking import collect_replies, running_engine
from command_line import Finished
from scripted_backend import END, ScriptedBackend, tokens
from scripted_command import batch_here, run_here
from templates import TEMPLATES
from thinkers import ENDING, LIMIT, budget, reply_around, speaker
from tiny_models import CHATML_TEMPLATE, write_chatml

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.control import MIN_TOKENS, Force, LoopCheck
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.engine.sequence import Request
from cerebrum_cli.formats.plain import EMBEDDED
from cerebrum_cli.formats.thinking import HARMONY_FINAL, THOUGHTS, ThoughtMarkup
from cerebrum_cli.inference.format_choice import format_builder
from cerebrum_cli.inference.reply import ReplyCollector
from cerebrum_cli.inference.reply_controls import SENTENCE_TOKENS, plan_endings
from cerebrum_cli.inference.reply_stream import ReplyChannels, ReplyRequest
from cerebrum_cli.inference.responder import Responder

SWITCHLESS = CHATML_TEMPLATE.replace("{% endfor %}", "{# <think> #}{% endfor %}", 1)
IN_PROMPT = CHATML_TEMPLATE.replace("assistant\\n' }}", "assistant\\n<think>\\n' }}").replace(
    "assistant\n' }}", "assistant\n<think>\n' }}"
)
THOUGHT = "<think>\nLet me see. "
ENDED = reply_around("<think>\nI can see {seed}.", ENDING, "It is {seed}. So there.")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models by their templates: with a switch, without one, with the thought opened in the prompt, and of gpt-oss."""
    folder = tmp_path_factory.mktemp("models")
    templates = {
        "switch": TEMPLATES["qwen3"],
        "none": SWITCHLESS,
        "in prompt": IN_PROMPT,
        "gpt-oss": TEMPLATES["gpt-oss"] + "{# <|channel|>analysis<|message|> #}",
    }
    return {
        name: write_chatml(folder / f"{number}.gguf", chat_template=template)
        for number, (name, template) in enumerate(templates.items())
    }


def ask(model: Path, home: Path, reply: str, think: str | int, *options: str | Path) -> Finished:
    return run_here({"reply": reply}, home, "ask", "Why?", "-m", model, "--think", str(think), *options)


@pytest.mark.parametrize("name", ["switch", "none"])
def test_ask_ends_a_thought_at_the_end_of_a_sentence(models: dict[str, Path], tmp_path: Path, name: str) -> None:
    reply = reply_around(THOUGHT.rstrip(), ENDING, "It is 42.")
    answer = ask(models[name], tmp_path, reply, LIMIT, "--json").object
    assert (answer["reasoning"], answer["text"], answer["finish_reason"]) == ("Let me see.", "It is 42.", "stop")
    assert answer["thought_closed_at"] == len(THOUGHT.rstrip())
    assert answer["completion_tokens"] == len(reply)


def test_ask_ends_a_thought_within_a_long_sentence(models: dict[str, Path], tmp_path: Path) -> None:
    thought = "<think>" + ("and so on " * 9)[: LIMIT + SENTENCE_TOKENS]
    answer = ask(models["none"], tmp_path, reply_around(thought, ENDING, "Yes."), LIMIT, "--json").object
    assert (answer["thought_closed_at"], answer["text"]) == (len(thought), "Yes.")


def test_ask_counts_a_thought_that_the_prompt_begins(models: dict[str, Path], tmp_path: Path) -> None:
    answer = ask(models["in prompt"], tmp_path, reply_around("Let me see.", ENDING, "Yes."), LIMIT, "--json").object
    assert (answer["reasoning"], answer["thought_closed_at"], answer["text"]) == (
        "Let me see.",
        len("Let me see."),
        "Yes.",
    )


@pytest.mark.parametrize(
    ("name", "reply", "reasoning"),
    [
        ("none", "<think>\nShort.\n</think>\n\nIt is a long answer, with two sentences. Yes.", "Short."),
        ("none", "An answer, without any thought. It is long.", None),
        ("in prompt", "Short.\n</think>\n\nIt is a long answer, with two sentences. Yes.", "Short."),
        ("none", "<think>\nLet me see</think>\n\nA long answer.", "Let me see"),  # closed while it was waited for
    ],
)
def test_ask_leaves_short_thoughts_and_answers(
    models: dict[str, Path], tmp_path: Path, name: str, reply: str, reasoning: str | None
) -> None:
    answer = ask(models[name], tmp_path, reply, LIMIT, "--json").object
    assert (answer["reasoning"], answer["thought_closed_at"]) == (reasoning, None)
    assert answer["text"] == reply.rpartition("</think>")[2].strip()


def test_ask_waits_for_a_marker_that_the_model_has_started(models: dict[str, Path], tmp_path: Path) -> None:
    thought = "<think>" + "and so " * 4  # the limit is reached within the marker
    reply = thought[: 7 + LIMIT + SENTENCE_TOKENS - 3] + "</think>\n\nYes."
    answer = ask(models["none"], tmp_path, reply, LIMIT, "--json").object
    assert (answer["text"], answer["thought_closed_at"]) == ("Yes.", None)


def test_ask_turns_off_a_thought_where_it_is_opened(models: dict[str, Path], tmp_path: Path) -> None:
    empty = "\n\n</think>\n\n"
    answer = ask(models["none"], tmp_path, reply_around("<think>", empty, "Yes."), "off", "--json").object
    assert (answer["reasoning"], answer["thought_closed_at"], answer["text"]) == (None, len("<think>"), "Yes.")


def test_ask_turns_off_a_thought_in_the_prompt(models: dict[str, Path], tmp_path: Path) -> None:
    answer = ask(models["in prompt"], tmp_path, "Yes.", "off", "--json").object
    assert (answer["reasoning"], answer["thought_closed_at"], answer["text"]) == (None, None, "Yes.")
    assert ask(models["in prompt"], tmp_path, "", "off", "--dry-run").out.endswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize("opening", ["", "<|channel|>commentary<|message|>Hm.<|end|><|start|>assistant"])
def test_ask_continues_a_channel_with_the_final_one(models: dict[str, Path], tmp_path: Path, opening: str) -> None:
    thought = opening + "<|channel|>analysis<|message|>Let me see."
    reply = reply_around(thought, "<|end|>" + HARMONY_FINAL, "Yes.")
    answer = ask(models["gpt-oss"], tmp_path, reply, LIMIT, "--json").object
    assert (answer["text"], answer["thought_closed_at"]) == ("Yes.", len(thought))
    assert answer["reasoning"].endswith("Let me see.")


def test_ask_ends_a_thought_that_begins_again(models: dict[str, Path], tmp_path: Path) -> None:
    reply = reply_around(reply_around(THOUGHT.rstrip(), ENDING, "<think>"), "\n" + ENDING, "Yes.")
    answer = ask(models["none"], tmp_path, reply, LIMIT, "--json").object
    assert (answer["reasoning"], answer["text"]) == ("Let me see.", "Yes.")


def test_ask_continues_a_conversation_whose_thought_was_ended(models: dict[str, Path], tmp_path: Path) -> None:
    ask(models["none"], tmp_path, reply_around(THOUGHT.rstrip(), ENDING, "Yes."), LIMIT)
    shown = ask(models["none"], tmp_path, "", LIMIT, "-c", "--dry-run").out
    assert f"assistant\n{THOUGHT.rstrip()}{ENDING}Yes.<|im_end|>" in shown


def test_ask_refuses_to_limit_thought_within_a_grammar(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "rule.gbnf").write_text('root ::= "x"')
    options = ("--grammar", tmp_path / "rule.gbnf")
    done = ask(models["none"], tmp_path, "x", LIMIT, *options)
    assert (done.code, done.err.splitlines()[0]) == (2, "error: --think N and --grammar cannot be used together")


def test_vote_limits_the_thought_of_each_sample(models: dict[str, Path], tmp_path: Path) -> None:
    seeds = [reply_around(THOUGHT.rstrip(), ENDING, "The answer is 42."), "<think>Hm.</think>The answer is 42."]
    options = ("--votes", "2", "--seed", "0", "--json", "--think", str(LIMIT))
    answer = run_here({"rows": {}, "seeds": seeds}, tmp_path, "ask", "Why?", "-m", models["none"], *options).object
    assert [chain["final_answer"] for chain in answer["votes"]["chains"]] == ["42", "42"]
    assert answer["thought_closed_at"] == len(THOUGHT.rstrip())


def test_batch_rows_state_where_a_thought_was_ended(models: dict[str, Path], tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": "one", "think": LIMIT}, {"prompt": "two"}]
    script = {"rows": {"two": "Two."}, "seeds": [reply_around(THOUGHT.rstrip(), ENDING, "Yes.")]}
    done, [one, two] = batch_here(script, tmp_path, models["none"], *rows)
    assert done.code == 0, done.err
    assert (one["thought_closed_at"], one["text"]) == (len(THOUGHT.rstrip()), "Yes.")
    assert list(one)[-1] == "thought_closed_at" and "thought_closed_at" not in two


def test_eval_samples_state_where_a_thought_was_ended(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"question": "Why?", "answer": "42"}\n')
    script = {"rows": {}, "seeds": [reply_around(THOUGHT.rstrip(), ENDING, "The answer is 42.")]}
    options = ("-m", models["none"], "--think", str(LIMIT), "-o", tmp_path / "run.jsonl")
    done = run_here(script, tmp_path, "eval", tmp_path / "in.jsonl", *options)
    assert done.code == 0, done.err
    [sample] = map(json.loads, (tmp_path / "run.jsonl").read_text().splitlines())
    assert (sample["correct"], sample["thought_closed_at"]) == (True, len(THOUGHT.rstrip()))


# The tokens that end a thought.


def test_thought_ends_with_the_special_tokens_of_a_vocabulary(chatml: LlamaBackend) -> None:
    endings = plan_endings(chatml, THOUGHTS)
    [close] = chatml.special_token_ids(["</think>"])
    assert endings[ENDING].count(close) == 1
    assert b"".join(chatml.piece(token, special=True) for token in endings[ENDING]) == ENDING.encode()
    ends, final = chatml.special_token_ids(["<|end|>"]), endings["<|end|>" + HARMONY_FINAL]
    assert final[0] in ends and len(final) < len("<|end|>" + HARMONY_FINAL)


@pytest.mark.parametrize(
    ("text", "ending"),
    [
        ("<think>", "\n\n</think>\n\n"),
        ("<think>\n", "\n</think>\n\n"),
        ("so.", "\n</think>\n\n"),
        ("so.\n", "</think>\n\n"),
        ("so.\n\n", "</think>\n\n"),
    ],
)
def test_thought_ends_on_a_line_of_its_own(text: str, ending: str) -> None:
    assert THOUGHTS[0].ending(text) == ending


@pytest.mark.parametrize("thought", THOUGHTS)
def test_thought_has_planned_endings_only(thought: ThoughtMarkup, chatml: LlamaBackend) -> None:
    endings = plan_endings(chatml, THOUGHTS)
    assert all(thought.ending(body + "\n" * breaks) in endings for body in (thought.open, "a") for breaks in range(4))


# The engine.


def test_engine_ends_the_thought_of_each_sample() -> None:
    backend = ScriptedBackend(speaker(lambda seed: ENDED.format(seed=seed)), slots=3, context_size=400)
    request = Request(tokens("go"), SamplingParams(seed=7), n=3, controls=(loads(dumps(budget())),))
    with running_engine(backend) as engine:
        replies = list(collect_replies(engine.generate([request])).values())
    assert [reply.text for reply in replies] == [
        f"<think>\nI can see {n}.{ENDING}It is {n}. So there." for n in (7, 8, 9)
    ]
    assert all(reply.finish and reply.finish.completion_tokens == len(reply.ids) for reply in replies)


@pytest.mark.parametrize(("limit", "context", "reason"), [(26, 400, "length"), (None, 28, "context")])
def test_engine_truncates_forced_tokens_at_the_limits(limit: int | None, context: int, reason: str) -> None:
    backend = ScriptedBackend(speaker(lambda seed: ENDED.format(seed=seed)), context_size=context)
    request = Request(tokens("go"), SamplingParams(seed=7, max_tokens=limit), controls=(budget(),))
    with running_engine(backend) as engine:
        [reply] = collect_replies(engine.generate([request])).values()
    assert (reply.reason, reply.text) == (reason, "<think>\nI can see 7.\n</thi")


def test_engine_counts_the_thought_of_a_prefix() -> None:
    channels = ReplyChannels(THOUGHTS, prefix_text="<think>" + "and so " * 9)
    factory = replace(budget(), channels=channels, prefix_length=70)
    request = Request(tokens("go"), SamplingParams(seed=7), controls=(factory,))
    with running_engine(ScriptedBackend(speaker(lambda seed: "I see. " * 20), context_size=400)) as engine:
        [reply] = collect_replies(engine.generate([request])).values()
    assert "</think>" in reply.text[:12]


@dataclass
class Interrupt:
    """A control that forces a text once."""

    count: int = 0
    horizon: int | None = None

    def feed(self, token: int, text: str) -> None:
        self.count += 1

    def intervene(self) -> Force | None:
        return Force(tokens("But: ")) if self.count == 5 else None


def test_engine_lets_several_controls_intervene() -> None:
    backend = ScriptedBackend(lambda held, seed: b"ab"[len(held) % 2], context_size=400)
    with running_engine(backend) as engine:
        request = Request(tokens("go"), SamplingParams(), controls=(LoopCheck, Interrupt))
        [reply] = collect_replies(engine.generate([request])).values()
    assert reply.text == "ababa" + "But: " + "ab" * (MIN_TOKENS // 2)
    assert reply.reason == "repetition"
    assert reply.finish and reply.finish.forced[0].at == 5


# Answers that the user asks for.


@pytest.mark.parametrize("think", [None, "500"])
def test_responder_answers_when_asked_to(think: str | None) -> None:
    asked_after = b"<think>\nAnd so"

    def model(held: tuple[int, ...], seed: int) -> int:
        text = bytes(held)
        if text.endswith(asked_after):
            responder.answer_now()  # before the next token, which follows from this
        thought, closed, answer = text.partition(b"</think>\n\n")
        if not closed:
            return b"And so on, "[(len(held) - len(thought.partition(b"<think>\n")[0]) - 8) % 11]
        return b"Yes."[len(answer)] if len(answer) < len("Yes.") else END

    with running_engine(ScriptedBackend(model, context_size=1000)) as engine:
        responder = Responder(engine, format_builder(EMBEDDED, IN_PROMPT, {}), 1000)
        for question in ("Why?", "Who?"):
            collector = ReplyCollector()
            for event in responder.respond(ReplyRequest(Conversation().user(question), Settings(think=think))):
                collector.emit(event)
            assert (collector.reasoning, collector.text) == ("And so", "Yes.")
            assert collector.reply and collector.reply.thought_closed_at == len("And so ")


def test_responder_asked_too_late_leaves_the_answer() -> None:
    def model(held: tuple[int, ...], seed: int) -> int:
        generated = bytes(held).rpartition(b"assistant\n")[2]
        if generated == b"<think>Hm.</think>Ye":
            responder.answer_now()
        reply = b"<think>Hm.</think>Yes. <think> is text."
        return reply[len(generated)] if len(generated) < len(reply) else END

    with running_engine(ScriptedBackend(model, context_size=1000)) as engine:
        responder, collector = Responder(engine, format_builder(EMBEDDED, SWITCHLESS, {}), 1000), ReplyCollector()
        for event in responder.respond(ReplyRequest(Conversation().user("Why?"), Settings())):
            collector.emit(event)
    assert (collector.reasoning, collector.text) == ("Hm.", "Yes. <think> is text.")
