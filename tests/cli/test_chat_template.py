"""A chat template from a file, instead of the one that is embedded in the model's file."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
from chats import make_chat
from command_line import assert_error
from scripted_backend import ScriptedBackend, replies
from scripted_command import batch_here, run_here
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


def test_ask_uses_the_template_of_a_file(template: Path, chatml_model: Path, tmp_path: Path) -> None:
    arguments = ("ask", "Why?", "-m", chatml_model, "--chat-template", template)
    assert run_here(REPLY, tmp_path, *arguments, "--dry-run").out == OPENING
    assert run_here(REPLY, tmp_path, *arguments, "--think", "off", "--dry-run").out.endswith("<think>\n\n</think>\n\n")
    reply = run_here(REPLY, tmp_path, *arguments, "--json").object
    assert (reply["format"], reply["reasoning"], reply["text"]) == ("embedded", "Hm.", "Yes.")


def test_template_of_config_and_of_a_row_is_relative_to_their_file(
    template: Path, chatml_model: Path, tmp_path: Path
) -> None:
    arguments = ("ask", "Why?", "-m", chatml_model, "--dry-run")
    assert run_here(REPLY, tmp_path, *arguments).out != OPENING
    config = template.parent / "config.toml"
    config.write_text('chat_template = "own.jinja"\n')
    assert run_here(REPLY, tmp_path, *arguments).out == OPENING
    config.unlink()
    row = f'repo_id = "a/b"\nfile = "{chatml_model.name}"\nformat = "cerebrum"\nsettings.chat_template = "own.jinja"\n'
    (template.parent / "models.toml").write_text(f"[models.mine]\n{row}")
    done = run_here(REPLY, tmp_path, *arguments)
    assert done.out == OPENING, done.err


def test_batch_records_the_template(template: Path, chatml_model: Path, tmp_path: Path) -> None:
    (template.parent / "config.toml").write_text('chat_template = "own.jinja"\n')
    done, _ = batch_here({"rows": {}, "seeds": ["Yes."]}, tmp_path, chatml_model, {"prompt": "Why?"})
    assert done.code == 0
    digest = sha256(template.read_bytes()).hexdigest()
    assert digest in (tmp_path / "out.jsonl.meta.json").read_text()


def test_invalid_template_file_is_an_error(template: Path, chatml_model: Path, tmp_path: Path) -> None:
    arguments = ("ask", "Why?", "-m", chatml_model, "--chat-template")
    assert_error(run_here(REPLY, tmp_path, *arguments, tmp_path / "none"), 2, "No such file", "check the path")
    both = run_here(REPLY, tmp_path, *arguments, template, "--format", "cerebrum")
    assert_error(both, 2, "chat_template cannot be used with --format cerebrum", "omit one of them")
    template.write_text("{% if %}")
    invalid = run_here(REPLY, tmp_path, *arguments, template)
    assert_error(invalid, 1, f"{template}: the chat template cannot be parsed", "choose another chat template")


def test_chat_changes_its_template(template: Path, chatml_model: Path, store: Store, tmp_path: Path) -> None:
    prompt = f"<|im_start|>system\nS<|im_end|>\n{OPENING}"
    script = {prompt: "Hm.\n</think>\n\nYes."}
    chat = make_chat(
        store, tmp_path, chatml_model, lambda: ScriptedBackend(replies(script), context_size=500), format=None
    )
    list(chat.change_settings({"chat_template": str(template)}))
    list(chat.send("Why?"))
    assert chat.messages[-1].metadata.reasoning == "Hm."
    for path, error in (("none.jinja", UsageError), (str(chatml_model), UsageError)):
        with pytest.raises(error):
            list(chat.change_settings({"chat_template": path}))
    template.write_text("{% if %}")
    with pytest.raises(FormatError):
        list(chat.change_settings({"chat_template": str(template), "ctx": 100}))
    chat.close()


def test_template_wins_over_the_format_that_a_session_recorded(
    template: Path, chatml_model: Path, tmp_path: Path
) -> None:
    asked = ("ask", "One?", "-m", chatml_model, "--format", "collective-cognition", "--temperature", "0")
    assert run_here({"reply": "1."}, tmp_path, *asked).code == 0
    continued = run_here(REPLY, tmp_path, "ask", "-c", "Why?", "--chat-template", template, "--dry-run")
    assert continued.out == f"<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n1.<|im_end|>\n{OPENING}"
    (template.parent / "config.toml").write_text('chat_template = "own.jinja"\n')
    exported = run_here(REPLY, tmp_path, "sessions", "export", "one", "--as", "transcript")
    assert "USER: One?" in exported.out, exported.err


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
        session = run_here({}, tmp_path, "sessions", "show", name, "--json").object
        assert session["params"]["chat_template"] == str(template)
        continued = run_here(REPLY, tmp_path, "chat", "--session", name, piped=b"Why?\n")
        assert (continued.code, continued.out) == (0, "> Why?\nYes.\n"), continued.err
        exported = run_here(REPLY, tmp_path, "sessions", "export", name, "--as", "transcript")
        assert OPENING in exported.out, exported.err
    assert run_here(REPLY, tmp_path, "ask", "-c", "Why?", "--dry-run").out.endswith(OPENING)


def test_session_without_its_template_stays_without_it(template: Path, chatml_model: Path, tmp_path: Path) -> None:
    (template.parent / "config.toml").write_text('chat_template = "own.jinja"\n')
    arguments = ("ask", "Why?", "-c", "--dry-run")
    for without in (("--chat-template", "none"), ("--format", "cerebrum")):
        assert run_here(REPLY, tmp_path, "ask", "One?", "-m", chatml_model, *without).code == 0
        assert "<think>" not in run_here(REPLY, tmp_path, *arguments).out
        assert run_here(REPLY, tmp_path, *arguments, "--chat-template", template).out.endswith(OPENING)


def test_later_of_template_and_format_wins(
    template: Path, chatml_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("ask", "Why?", "-m", chatml_model, "--dry-run")
    config = template.parent / "config.toml"
    config.write_text('chat_template = "own.jinja"\n')
    assert run_here(REPLY, tmp_path, *arguments, "--format", "cerebrum").out.endswith("\nUser: Why?\nAI:")
    assert run_here(REPLY, tmp_path, *arguments, "--chat-template", "none").out == OPENING.removesuffix("<think>\n")
    config.write_text('chat_template = "none"\nformat = "cerebrum"\n')
    assert run_here(REPLY, tmp_path, *arguments).out.endswith("\nUser: Why?\nAI:")
    assert run_here(REPLY, tmp_path, *arguments, "--chat-template", template).out == OPENING
    monkeypatch.setenv("CEREBRUM_FORMAT", "cerebrum")
    monkeypatch.setenv("CEREBRUM_CHAT_TEMPLATE", str(template))
    assert run_here(REPLY, tmp_path, *arguments).code == 2
