"""A chat template from a file, instead of the one that is embedded in the model's file."""

from pathlib import Path

import pytest
from chats import make_chat
from command_line import CommandLine
from scripted_backend import ScriptedBackend, replies
from scripted_command import run_here
from templates import TEMPLATES

from cerebrum_cli.chat.store import Store
from cerebrum_cli.core.errors import FormatError, UsageError

REPLY = {"reply": "Hm.\n</think>\n\nYes."}
OPENING = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n<think>\n"


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "config" / "cerebrum" / "own.jinja"
    path.parent.mkdir(parents=True)
    path.write_text(TEMPLATES["qwen3.5"])
    return path


def test_chat_changes_its_template(template: Path, chatml_model: Path, store: Store, tmp_path: Path) -> None:
    prompt = f"<|im_start|>system\nS<|im_end|>\n{OPENING}"
    script = {prompt: "Hm.\n</think>\n\nYes."}
    chat = make_chat(
        store, tmp_path, chatml_model, lambda: ScriptedBackend(replies(script), context_size=500), format=None
    )
    list(chat.change_settings({"format": str(template)}))
    list(chat.send("Why?"))
    assert chat.tree.messages[-1].message.reasoning == "Hm."
    for path, error in (("none.jinja", UsageError), (str(chatml_model), UsageError)):
        with pytest.raises(error):
            list(chat.change_settings({"format": path}))
    template.write_text("{% if %}")
    with pytest.raises(FormatError):
        list(chat.change_settings({"format": str(template), "ctx": 100}))
    chat.close()


@pytest.mark.slow
def test_session_keeps_its_template(
    template: Path, mistral_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(template.parent)
    begun = ("-m", mistral_model, "--chat-template", template.name)
    for command in (("ask", "One?"), ("chat", "--session", "two")):
        piped = b"Two?\n" if command[0] == "chat" else None
        assert run_here(REPLY, tmp_path, *command, *begun, piped=piped).code == 0
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        with CommandLine(tmp_path).sessions() as store:
            session = store.find(name)
            assert session and session.format == str(template)
        continued = run_here(REPLY, tmp_path, "chat", "--session", name, piped=b"Why?\n")
        assert (continued.code, continued.out) == (0, "Yes.\n"), continued.err
    assert run_here(REPLY, tmp_path, "ask", "-c", "Why?", "--dry-run").out.endswith(OPENING)
