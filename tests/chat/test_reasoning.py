"""Chats with models that reason: what earlier turns are in a prompt, and what is evaluated of it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from chats import finish, make_chat
from scripted_backend import ScriptedBackend, replies
from templates import TEMPLATES
from tiny_models import write_chatml

from cerebrum_cli.chat.chat import Chat
from cerebrum_cli.chat.store import Store

OpenChat = Callable[..., AbstractContextManager[Chat]]

QUESTIONS = ("One, in a question of more than sixteen tokens?", "Two, which is as long as the first?", "Three?")
REASONING = ("I wonder.", "A thought that is longer than the answer.", "Hm.")
ANSWERS = ("1.", "2.", "3.")
OPENING = "<|im_end|>\n<|im_start|>assistant\n<think>\n"


def prompt(turn: int, earlier: Callable[[int], str] = lambda index: ANSWERS[index]) -> str:
    """The prompt of a turn, as Qwen3.5's template writes it."""
    before = "".join(f"{question(index)}{earlier(index)}<|im_end|>\n" for index in range(turn))
    return f"<|im_start|>system\nS<|im_end|>\n{before}{question(turn)}<think>\n"


def asked(turn: int) -> str:
    """A prompt as far as the end of its last question."""
    return prompt(turn).removesuffix(OPENING)


def question(turn: int) -> str:
    return f"<|im_start|>user\n{QUESTIONS[turn]}<|im_end|>\n<|im_start|>assistant\n"


def reply(turn: int) -> str:
    return f"{REASONING[turn]}\n</think>\n\n{ANSWERS[turn]}"


def kept(turn: int) -> str:
    return f"<think>\n{reply(turn)}"


@pytest.fixture(scope="module")
def reasoner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chatml(tmp_path_factory.mktemp("models") / "reasoner.gguf", chat_template=TEMPLATES["qwen3.5"])


@pytest.fixture(params=["dense", "recurrent"])
def open_chat(request: pytest.FixtureRequest, store: Store, tmp_path: Path, reasoner: Path) -> OpenChat:
    """A function that opens a chat whose model gives the scripted reply to each exact prompt, and to no other."""
    script = {prompt(turn, earlier): reply(turn) for turn in range(3) for earlier in (lambda at: ANSWERS[at], kept)}

    def backend() -> ScriptedBackend:
        trims = request.param == "dense"
        return ScriptedBackend(replies(script), 1, 2000, can_trim=trims, checkpoint_budget=10**6 * (not trims))

    @contextmanager
    def opened(**settings: Any) -> Iterator[Chat]:
        chat = make_chat(store, tmp_path, reasoner, backend, format="embedded", **settings)
        chat.switch_session(store.latest())
        yield chat
        chat.close()

    return opened


def test_turns_after_reasoning_evaluate_what_follows_the_last_question(open_chat: OpenChat) -> None:
    with open_chat() as chat:
        for turn in range(3):
            done = list(chat.send(QUESTIONS[turn]))
            assert finish(done).prompt_tokens == len(prompt(turn))
            if turn:
                assert finish(done).cached_tokens >= len(asked(turn - 1))
            answered = f"{ANSWERS[turn]}<|im_end|>\n<|im_start|>user\n{OPENING}"
            assert chat.context_usage == (len(prompt(turn)) - len("<think>\n") + len(answered), 2000)
        assert finish(chat.retry()).prompt_tokens == len(prompt(2))
        assert chat.tree.undo() == QUESTIONS[2]
        assert finish(chat.send(QUESTIONS[2])).prompt_tokens == len(prompt(2))
