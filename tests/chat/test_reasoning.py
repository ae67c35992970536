"""Chats with models that reason: what earlier turns are in a prompt, and what is evaluated of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from chats import finish, make_chat
from scripted_backend import ScriptedBackend, replies
from templates import TEMPLATES
from tiny_models import write_chatml

from cerebrum_cli.chat.chat import Chat
from cerebrum_cli.chat.store import Store

QUESTIONS = ("One, in a question of more than sixteen tokens?", "Two, which is as long as the first?", "Three?")
REASONING = ("I wonder.", "A thought that is longer than the answer.", "Hm.")
ANSWERS = ("1.", "2.", "3.")
OPENING = "<|im_end|>\n<|im_start|>assistant\n<think>\n"


def prompt(turn: int) -> str:
    """The prompt of a turn, as Qwen3.5's template writes it: without the reasoning of earlier ones."""
    before = "".join(f"{question(index)}{ANSWERS[index]}<|im_end|>\n" for index in range(turn))
    return f"<|im_start|>system\nS<|im_end|>\n{before}{question(turn)}<think>\n"


def question(turn: int) -> str:
    return f"<|im_start|>user\n{QUESTIONS[turn]}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(params=["dense", "recurrent"])
def chat(request: pytest.FixtureRequest, store: Store, tmp_path: Path) -> Iterator[Chat]:
    """A chat whose model gives the scripted reply to each exact prompt, and to no other."""
    model = write_chatml(tmp_path / "reasoner.gguf", chat_template=TEMPLATES["qwen3.5"])
    script = {prompt(turn): f"{REASONING[turn]}\n</think>\n\n{ANSWERS[turn]}" for turn in range(3)}
    trims = request.param == "dense"
    backend = ScriptedBackend(replies(script), 1, 2000, can_trim=trims, checkpoint_budget=10**6 * (not trims))
    chat = make_chat(store, tmp_path, model, lambda: backend, format="embedded")
    yield chat
    chat.close()


def test_turns_after_reasoning_evaluate_what_follows_the_last_question(chat: Chat) -> None:
    for turn in range(3):
        done = finish(chat.send(QUESTIONS[turn]))
        assert done.prompt_tokens == len(prompt(turn))
        if turn:
            assert done.cached_tokens >= len(prompt(turn - 1).removesuffix(OPENING))  # to the end of its question
        answered = f"{ANSWERS[turn]}<|im_end|>\n<|im_start|>user\n{OPENING}"
        assert chat.context_usage == (len(prompt(turn)) - len("<think>\n") + len(answered), 2000)
    assert finish(chat.retry()).prompt_tokens == len(prompt(2))
    assert chat.tree.undo() == QUESTIONS[2]
    assert finish(chat.send(QUESTIONS[2])).prompt_tokens == len(prompt(2))
