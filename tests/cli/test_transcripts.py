"""What commands print: every line of standard output and standard error, and the exit code, as in a transcript.

A transcript has one user, whose home is `~` and the working directory. `;;` begins a comment. The steps:

    @model NAME             installs a tiny ChatML model; after the name, a template of the tests (or none), sampling
    @file PATH              writes the following lines, up to `@end`, into a file; \\x.. stands for a byte
    @reply TEXT             from here on, a scripted model generates this text
    @replies LIST           or one of these, by its seed, as JSON
    @answers OBJECT         and to prompts with these ends, these texts
    @serve MODEL...         starts a server of chat completions with these models; its address is URL
    @llama-server MODEL     starts a llama-server, and @vllm a vLLM, which get token ids
    $ cerebrum ARGUMENT...  runs a command; before it may be `printf TEXT |`, or NAME=VALUE for variables
    $ cat PATH              prints a file
    $ ls                    prints the names of the files in the home directory
    $ rm PATH               removes a file
    $ asked                 prints the requests that the server has answered since this was last asked, sorted, with
                            the text of prompts

Below a command is its standard output, then its standard error after `! `, then `[exit CODE]` unless that is 0. `...`
stands for any text. With WRITE_TRANSCRIPTS=1 in the environment, transcripts that differ are rewritten.
"""

import contextlib
import json
import os
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine, Finished, environment_of
from model_servers import ModelServer
from remote_engines import set_patience
from scripted_command import backend_for, install, run_here
from server_kinds import LlamaServer, OllamaServer, VllmServer
from templates import TEMPLATES
from tiny_models import write_chatml

DIRECTORY = Path(__file__).with_name("transcripts")
SERVERS: dict[str, type[ModelServer]] = {"@serve": OllamaServer, "@llama-server": LlamaServer, "@vllm": VllmServer}


@dataclass(slots=True)
class Transcript:
    """The user of a transcript."""

    user: CommandLine
    model: Path
    started: contextlib.ExitStack
    script: dict[str, Any] = field(default_factory=lambda: {"rows": {}, "seeds": []})
    server: ModelServer | None = None

    def replay(self, text: str) -> str:
        """Run the steps of a transcript. Return it with what they print in place of what differs."""
        return "".join(self.step(step) for step in re.split(r"^(?=\$ |;; |@(?!end))", text, flags=re.MULTILINE))

    def step(self, step: str) -> str:
        head, _, body = step.partition("\n")
        if head.startswith("$ "):
            printed = self.printed(head.removeprefix("$ "))
            blank = "\n" if body.endswith("\n\n") or body == "\n" else ""
            if matches(body.removesuffix(blank), printed):
                return step
            patterns = [line for line in body.splitlines() if "..." in line]
            lines = [next((known for known in patterns if matches(known, line)), line) for line in printed.splitlines()]
            return "\n".join([head, *lines, blank])
        kind, _, argument = head.partition(" ")
        if kind == "@model":
            name, *details = argument.split(" ", 2)
            install(self.user.home, self.model_with(name, *details) if details else self.model, name)
        elif kind == "@reply":
            self.script["seeds"] = [argument.encode().decode("unicode_escape")]
        elif kind == "@replies":
            self.script["seeds"] = json.loads(argument)
        elif kind == "@answers":
            self.script["rows"] = json.loads(argument)
        elif kind in SERVERS:
            self.server = SERVERS[kind](backend_for(self.script, 1).model, context_size=100_000)
            self.server.models = tuple(argument.split(" "))
            self.started.enter_context(self.server)
        elif kind == "@file":
            path = self.user.home / argument
            path.parent.mkdir(parents=True, exist_ok=True)
            content = body.partition("@end")[0].replace("~/", f"{self.user.home}/")
            path.write_bytes(re.sub(rb"\\x(..)", lambda byte: bytes.fromhex(byte[1].decode()), content.encode()))
        return step

    def model_with(self, name: str, template: str, sampling: str = "{}") -> Path:
        path = self.user.home / "models" / f"{name}.gguf"
        path.parent.mkdir(exist_ok=True)
        return write_chatml(
            path, chat_template=None if template == "none" else TEMPLATES[template], sampling=json.loads(sampling)
        )

    def printed(self, line: str) -> str:
        """What a command prints, as a transcript has it."""
        words = shlex.split(line)
        if words[0] == "cat":
            return self.shown((self.user.home / words[1]).read_text())
        if words[0] == "ls":
            return "".join(f"{path.name}\n" for path in sorted(self.user.home.iterdir()) if path.is_file())
        if words[0] == "rm":
            (self.user.home / words[1]).unlink()
            return ""
        if words[0] == "asked" and self.server:
            bodies = [asked.body for asked in self.server.completions()]
            self.server.asked.clear()
            for body in bodies:
                if "prompt" in body:
                    body["prompt"] = bytes(body["prompt"]).decode()
            return "".join(f"{line}\n" for line in sorted(json.dumps(body, ensure_ascii=False) for body in bodies))
        at = words.index("cerebrum")
        arguments = [re.sub("^~/", f"{self.user.home}/", word) for word in words[at + 1 :]]
        if self.server:
            arguments = [self.server.url if word == "URL" else word for word in arguments]
        piped = words[1].encode().decode("unicode_escape").encode() if words[0] == "printf" else None
        variables = {} if piped is not None else dict(word.split("=", 1) for word in words[:at])
        done = self.run(arguments, piped, variables)
        errors = "".join(f"! {error}\n" for error in self.shown(done.err).splitlines())
        out = self.shown(done.out)
        if out and not out.endswith("\n"):
            out += "\n[no newline]\n"
        return out + errors + (f"[exit {done.code}]\n" if done.code else "")

    def run(self, arguments: list[str], piped: bytes | None, variables: dict[str, str]) -> Finished:
        if not self.script["seeds"]:
            return self.user.run(*arguments, stdin=piped, env=variables)
        script = {"reply": self.script["seeds"][0]} if "--raw" in arguments else self.script
        with environment_of(self.user.environment(variables)), contextlib.chdir(self.user.home):
            return run_here(script, self.user.home, *arguments, piped=piped)

    def shown(self, text: str) -> str:
        text = re.sub(r"\b[0-9a-f]{58}\b", "KEY", text)  # of a row, which depends on versions
        return text.replace(str(self.user.home), "~").replace(self.server.url if self.server else "URL", "URL")


def matches(expected: str, printed: str) -> bool:
    pattern = ".*?".join(map(re.escape, expected.split("...")))
    return re.fullmatch(pattern, printed, re.DOTALL) is not None


@pytest.mark.parametrize("name", sorted(path.stem for path in DIRECTORY.glob("*.txt")))
def test_commands_print_their_transcript(
    new_user: CommandLine, chatml_model: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_patience(monkeypatch)
    path = DIRECTORY / f"{name}.txt"
    expected = path.read_text(encoding="utf-8")
    with contextlib.ExitStack() as started:
        printed = Transcript(new_user, chatml_model, started).replay(expected)
    if os.environ.get("WRITE_TRANSCRIPTS"):
        path.write_text(printed, encoding="utf-8")
    else:
        assert printed == expected
