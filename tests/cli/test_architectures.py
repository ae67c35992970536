"""Every kind of model gives one answer to one question: evaluated afresh, resumed, beside others, with draft tokens.

The suite runs eight architectures, `make fuzz` all of llama.cpp's.
"""

import json
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import pytest
from architectures import ARCHITECTURES, all_architectures, write_all_kinds, write_architecture
from chats import finish, text
from command_line import SOUND_MODELS, CommandLine
from llama_engines import STORY, in_f32
from scripted_command import app_for
from templates import TEMPLATES

from cerebrum_cli.chat.chat import Chat
from cerebrum_cli.cli.app import App
from cerebrum_cli.cli.chat import ChatCommand, open_chat
from cerebrum_cli.core.ask import Ask, Votes
from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.core.events import Event, Events, FinishEvent, TokenEvent
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.backend import Backend
from cerebrum_cli.engine.llama.bindings import accelerators
from cerebrum_cli.engine.llama.context import LlamaContext
from cerebrum_cli.engine.requests import LoadOptions
from cerebrum_cli.engine.step import TokenRow
from cerebrum_cli.gguf.header import read_header, require_generative
from cerebrum_cli.main import run
from cerebrum_cli.replies.majority_vote import MajorityVote
from cerebrum_cli.terminal.streams import Streams

pytestmark = pytest.mark.slow

LENGTH = 12  # tokens of a reply
LONG = STORY * 18  # over 1,500 tokens
TURN = 40  # tokens of a short question and the markup around it
MAX_REEVALUATED = 64
LIKE_OTHERS = ("qwen3", "qwen3moe")  # memory as in llama, and experts as in gpt-oss
KINDS = ("qwen35", "gemma3", "mamba2")  # hybrid, with a sliding window, recurrent
BROKEN = {"cogvlm": "llama.cpp 0c1e57098 returns the logits of the first tokens of a step, not of those asked for"}


@dataclass(frozen=True, slots=True)
class Owner:
    """Someone who owns one model and runs commands in this process, on the real llama.cpp.

    With flash attention, which sums in F16, one reply in a hundred depends on how its prompt is divided into steps: two
    tokens are equally likely. `is_exact` is without.
    """

    home: Path
    model: Path
    is_exact: bool = True

    def app(self, out: StringIO | None = None, err: StringIO | None = None, piped: str | None = None) -> App:
        source = None if piped is None else BytesIO(piped.encode())
        app = app_for({}, self.home, Streams(out or StringIO(), err or StringIO(), source, False, False, False))

        def open_file(options: LoadOptions, emit: Any, stop: Any) -> Backend:
            chosen = in_f32(options) if self.is_exact else options
            return app.machine.open_file(chosen, emit, stop)

        app.open_file = open_file
        return app

    def run(self, *arguments: str, piped: str | None = None) -> str:
        out, err = StringIO(), StringIO()
        given = ["-m", str(self.model), "--set", "threads=1", "-n", str(LENGTH), *arguments[1:]]
        code = run([arguments[0], *given], self.app(out, err, piped))
        assert code in (0, 5), err.getvalue()
        return out.getvalue()

    def ask(self, question: str, *options: str) -> Any:
        return json.loads(self.run("ask", "--json", "--no-log", *options, question))

    def batch(self, questions: list[str], parallel: int, *options: str) -> list[str]:
        rows = "".join(json.dumps({"prompt": question}) + "\n" for question in questions)
        given = ("--parallel", str(parallel), "-o", "-", "-")
        answers = [json.loads(line) for line in self.run("batch", *options, *given, piped=rows).splitlines()]
        assert not [answer["error"] for answer in answers if answer["error"]]
        return [answer["text"] for answer in sorted(answers, key=lambda answer: int(answer["id"]))]

    @contextmanager
    def chat(self, **settings: object) -> Iterator[Chat]:
        """Continue the session in a new process, as it were."""
        layer = {"model": str(self.model), "threads": 1, "max_tokens": LENGTH, "temperature": 0, **settings}
        chat = open_chat(self.app(), layer, layer, ChatCommand(session="talk"))
        try:
            yield chat
        finally:
            assert chat.close() is None


def interrupt(events: Generator[Event, None, None]) -> None:
    """Interrupt a reply after its third token, as Ctrl-C does."""
    with closing(events):
        tokens = (event for event in events if isinstance(event, TokenEvent))
        for _ in range(3):
            next(tokens, None)


Comparison = tuple[object, ...]
"""A way to a reply, the reply that is expected, and the one it gave."""
BATCHES = ("batch", "batch with flash attention")
STEPS_OF_SEVERAL_ROWS = ("speculative decoding", "speculative decoding in a chat", "vote", *BATCHES)


def require_equal_replies(owner: Owner) -> None:
    """Answer the same questions in many ways."""
    has_long_context = (read_header(owner.model).context_length or 0) >= 1000
    story = STORY * 3 if has_long_context else "Once upon a time there lived a fox. "
    compared = (*compare_chats(owner, story), *compare_commands(owner, story))
    different = [comparison for comparison in compared if comparison[1] != comparison[2]]
    # a GPU's kernels depend on the number of rows in a step: it decides between tokens that are nearly equally likely
    if accelerators():
        different = [comparison for comparison in different if comparison[0] not in STEPS_OF_SEVERAL_ROWS]
    assert different == []


def vote(chat: Chat, samples: int, settings: Settings) -> Events:
    """Vote on the last question of a chat."""
    conversation = chat.conversation
    asked = replace(conversation, messages=conversation.messages[:-1])
    return chat.loaded.vote_events(Ask(asked, settings), MajorityVote(Votes(samples, samples)))


def compare_chats(owner: Owner, story: str) -> Iterator[Comparison]:
    """The second question is longer than what sliding windows can drop and still be rolled back."""
    first, second, third = f"{story} Who?", f"{story} Why?", "So?"
    with owner.chat() as chat:
        yield "chat", owner.ask(first)["text"], text(chat.send(first))
    with owner.chat() as chat:
        resumed = text(chat.send(second))
        yield "retry", resumed, text(chat.retry())
        chat.tree.undo()
        yield "undo", resumed, text(chat.send(second))
        edited = text(chat.edit_question(third))
        interrupt(chat.retry())
        yield "retry of an interrupted reply", edited, text(chat.retry())
        list(vote(chat, 5, chat.settings))
        yield "retry after a vote", edited, text(chat.retry())
    with owner.chat(cache_gb=0.0) as chat:
        yield "edit", text(chat.retry()), edited
        chat.tree.undo()
    with owner.chat(cache_gb=0.0) as chat:
        yield "resumed session", text(chat.send(second)), resumed
    with owner.chat(cache_gb=0.0, speculative=True) as chat:
        yield "speculative decoding in a chat", resumed, text(chat.retry())


def compare_commands(owner: Owner, story: str) -> Iterator[Comparison]:
    first = f"{story} Who?"
    if accelerators():
        yield "without the GPU", owner.ask(first, "-ngl", "0")["text"], owner.ask(first)["text"]
    replies = (owner.ask(first, "-n", "60", "--set", f"speculative={value}")["text"] for value in ("off", "on"))
    yield "speculative decoding", *replies
    vote = owner.ask(first, "--temperature", "0.8", "--votes", "5")["votes"]["samples"][-1]
    yield "vote", owner.ask(first, "--temperature", "0.8", "--seed", str(vote["seed"]))["text"], vote["text"]
    questions = [*(f"{story[: 20 * index]} Why?" for index in range(9)), first]
    yield "batch", owner.ask(first)["text"], owner.batch(questions, 8)[-1]
    with_flash_attention = replace(owner, is_exact=False)
    singly, together = (with_flash_attention.batch(questions, parallel) for parallel in (1, 8))
    yield "batch with flash attention", singly, together


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("architectures")


@pytest.fixture(params=[name for name in ARCHITECTURES if name not in LIKE_OTHERS])
def owner(request: pytest.FixtureRequest, directory: Path, tmp_path: Path) -> Owner:
    path = directory / f"{request.param}.gguf"
    if not path.exists():
        SOUND_MODELS.append(write_architecture(path, request.param))
    CommandLine(tmp_path).vouch_for_models()
    return Owner(tmp_path, path)


def test_every_way_to_a_reply_gives_the_same_reply(owner: Owner) -> None:
    require_equal_replies(owner)
    others = {owner.ask(f"{story} What comes then?")["text"] for story in (STORY, STORY[::-1])}
    assert len(others) == 2, "the reply does not depend on the prompt, so equal ones prove nothing"


@pytest.fixture
def count_rows(monkeypatch: pytest.MonkeyPatch) -> Callable[[Iterator[Event]], int]:
    """A function that runs a reply to its end, and returns how many tokens llama.cpp evaluates for it."""
    decode, counts = LlamaContext.decode, [0]

    def decode_counted(context: LlamaContext, rows: Sequence[TokenRow]) -> bool:
        counts[0] += len(rows)
        return decode(context, rows)

    def count(events: Iterator[Event]) -> int:
        before = counts[0]
        list(events)
        return counts[0] - before

    monkeypatch.setattr(LlamaContext, "decode", decode_counted)
    return count


@pytest.mark.parametrize("owner", KINDS, indirect=True)
def test_long_prompts_are_not_evaluated_again(owner: Owner, count_rows: Callable[[Iterator[Event]], int]) -> None:
    few = MAX_REEVALUATED + LENGTH
    with replace(owner, is_exact=False).chat() as chat:
        assert count_rows(chat.send(LONG)) > 1500
        assert count_rows(chat.retry()) <= few
        assert count_rows(chat.send("And then?")) <= few + TURN
        assert count_rows(chat.retry()) <= few
        chat.tree.undo()
        assert count_rows(chat.send("Who?")) <= few + TURN
        interrupt(chat.retry())
        assert count_rows(chat.send("And then?")) <= few + TURN
        assert count_rows(vote(chat, 8, replace(chat.settings, temperature=0.8))) <= few + 8 * LENGTH
    with replace(owner, is_exact=False).chat() as chat:
        assert count_rows(chat.send("What then?")) <= few + TURN
        chat.tree.undo()
        assert count_rows(chat.retry()) <= few
    with replace(owner, is_exact=False).chat() as chat:
        assert count_rows(chat.retry()) <= few


@pytest.mark.parametrize("owner", ("llama", *KINDS), indirect=True)
def test_turn_after_reasoning_evaluates_what_follows_the_last_question(owner: Owner) -> None:
    """Also after a resume, and with reasoning longer than what a sliding window can be rolled back by."""
    template = owner.home / "template.jinja"
    before = "(thinking before the answer is given)"
    template.write_text(TEMPLATES["qwen3.5"].replace("<think>\\n') }}", before + "\\n<think>\\n') }}"))
    settings = {"format": str(template), "max_tokens": 150}
    opening = Text(f"<|im_end|>\n<|im_start|>assistant\n{before}\n<think>\n", trusted=True)

    def turn(chat: Chat, question: str) -> FinishEvent:
        done = finish(chat.send(question))
        reply = chat.tree.messages[-1]
        assert (reply.message.content == "") == (reply.message.reasoning is not None)
        return done

    with replace(owner, is_exact=False).chat(**settings) as chat:
        first = turn(chat, STORY * 3)
        length = len(chat.loaded.engine.vocabulary.tokenize([opening]))
        second = turn(chat, "And then?")
        assert second.cached_tokens >= first.prompt_tokens - length - 1
        assert second.prompt_tokens < first.prompt_tokens + TURN + 2 * length
        chat.tree.undo()
        assert turn(chat, "Who?").cached_tokens >= first.prompt_tokens - length - 1
        third = turn(chat, "Why?")
    with replace(owner, is_exact=False).chat(**settings) as chat:
        assert turn(chat, "So?").cached_tokens >= third.prompt_tokens - length - 1


@pytest.mark.parametrize("owner", KINDS, indirect=True)
def test_vote_evaluates_its_prompt_once(owner: Owner, count_rows: Callable[[Iterator[Event]], int]) -> None:
    with replace(owner, is_exact=False).chat() as chat:
        settings = replace(chat.settings, temperature=0.8)
        request = Ask(chat.conversation.user(LONG), settings)
        rows = count_rows(chat.loaded.vote_events(request, MajorityVote(Votes(8, 8))))
    prompt = owner.ask(LONG, "-n", "1")["prompt_tokens"]
    assert rows <= prompt + 8 * LENGTH + MAX_REEVALUATED


@pytest.mark.fuzz
@pytest.mark.parametrize("name", all_architectures())
def test_fuzzed_architecture_gives_the_same_reply_in_every_way(name: str, tmp_path: Path) -> None:
    if name in BROKEN:
        pytest.skip(BROKEN[name])
    paths = write_all_kinds(name, tmp_path)
    if not paths:
        pytest.skip("llama.cpp's program does not write it")
    for path in paths:
        try:
            require_generative(path, read_header(path))
        except ModelFileError as error:
            pytest.skip(error.message)
        home = tmp_path / path.stem
        home.mkdir()
        require_equal_replies(Owner(home, path))


@pytest.mark.fuzz
def test_all_architectures_are_fuzzed() -> None:
    assert all_architectures(), "llama.cpp's program is not built: run `make peers`"
