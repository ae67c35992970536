"""The documentation: generated pages are current, links lead somewhere, and examples run as printed on tiny models."""

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from adapter_files import factors_for, write_adapter
from checkpoint_models import read_model, write_checkpoint, write_json, write_weights
from command_line import COMMAND, ROOT, CommandLine, Finished
from dataset_files import table
from documents import pdf
from guard import Guard, GuardedProcess, guarded_process
from hub_server import DATASETS, HubServer
from model_servers import ModelServer
from ollama_store import put_layer
from server_kinds import LlamaServer, LmStudioServer, OllamaServer
from vocabularies import open_vocabulary

from cerebrum_cli.cli import COMMANDS
from cerebrum_cli.cli.command_line import assembled
from cerebrum_cli.core.saved_prompts import read_prompt
from cerebrum_cli.core.settings import read_config
from cerebrum_cli.library.catalogue_file import load_catalogue
from cerebrum_cli.library.library import CATALOGUE

PAGES = ("README.md", "CONTRIBUTING.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md")))
OUTSIDE = """
import contextlib, os, socket, tempfile

open("opened", "w").close()
os.mkdir("made")
os.mkdir("in", dir_fd=os.open("made", os.O_RDONLY))
os.rename("opened", "renamed")
os.link("renamed", "linked")
os.symlink("renamed", "symlinked")
tempfile.mkdtemp()
for act in (
    lambda: socket.create_connection(("localhost", 1)),
    lambda: socket.getaddrinfo("telemetry.invalid", 443, flags=socket.AI_NUMERICHOST),
    lambda: socket.socket(type=socket.SOCK_DGRAM).connect(("192.0.2.1", 9)),
    lambda: socket.socket(type=socket.SOCK_DGRAM).sendmsg([b"x"], [], 0, ("192.0.2.2", 9)),
):
    with contextlib.suppress(OSError):
        act()
"""
ABOUT_MODELS, EVALUATE = "docs/models.md", "docs/evaluate.md"
NEEDED = tomllib.loads((ROOT / "tests" / "data" / "examples.toml").read_text(encoding="utf-8"))
SKIPPED = re.compile("|".join(NEEDED["left_out"].values()))
SERVERS: dict[str, type[ModelServer]] = {"llama": LlamaServer, "ollama": OllamaServer, "lm_studio": LmStudioServer}
SUCCESS = (0, 4, 5, 6)  # a prompt may not fit in the context of a tiny model, and it may give no answer
ASKS = re.compile(r"cerebrum (sessions )?rm ")  # for confirmation
EVALUATES = re.compile(r"cerebrum (lm-)?eval ")
SHELL = re.compile(r"[|&;<>]|(?<!\\)\$")
FROM_NOTHING = ("README.md", "docs/getting-started.md", ABOUT_MODELS)  # in a home without a model
LOCAL = ("model.gguf", "actor.gguf", "instruct.gguf", "SmolLM2-135M-Instruct.Q4_1.gguf")
CONFIGURATION = {"docs/servers.md": "config.toml", ABOUT_MODELS: "models.toml"}
PRINTED_FORMATS = ("cerebrum", "collective-cognition", "mistral")  # of which the page has prompts, in this order
UNPRINTED = {ABOUT_MODELS: ["cerebrum merge weights.yaml -o weights.gguf"]}  # the second recipe of the page


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("name", ["chat.md", "settings.md"])
def test_reference_pages_are_current(name: str) -> None:
    pages = runpy.run_path(str(ROOT / "docs" / "reference.py"))["pages"]()
    assert (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8") == pages[name], "run: make docs"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "toml")])
def test_examples_of_configuration_can_be_read(page: str, tmp_path: Path) -> None:
    examples = blocks(page, "toml")
    models = [example for example in examples if example.startswith("[models")]
    settings = [example for example in examples if not example.startswith(("[models", "[project]"))]
    (tmp_path / "models.toml").write_text("\n".join(models), encoding="utf-8")
    (tmp_path / "config.toml").write_text("\n".join(settings), encoding="utf-8")
    load_catalogue([CATALOGUE, tmp_path / "models.toml"])
    read_config(tmp_path / "config.toml")


def test_example_of_a_saved_prompt_can_be_read(tmp_path: Path) -> None:
    [example] = [block for block in blocks("docs/ask.md", "text") if block.startswith("+++\n")]
    (tmp_path / "example.md").write_text(example, encoding="utf-8")
    assert "{input}" in str(read_prompt(tmp_path / "example.md").prompt)


def anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page, as GitHub makes them."""
    text = re.sub(r"^(`{3,}).*?^\1", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", text, re.M)
    }


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page: str) -> None:
    path = ROOT / page
    links = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", path.read_text(encoding="utf-8"))
    targets = [(path.parent / name if name else path, anchor) for name, anchor in links]
    assert [target for target, _ in targets if not target.exists()] == []
    assert [(target.name, anchor) for target, anchor in targets if anchor and anchor not in anchors(target)] == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_examples_have_valid_options(page: str) -> None:
    group: Any = assembled(COMMANDS, COMMANDS)
    lines = "".join([*blocks(page, "sh"), *blocks(page, "console")]).replace("\\\n", " ").splitlines()
    for line in lines:
        for found in re.finditer(r"(?<![\w./-])cerebrum (?!-)([^|>#&;]*)", line.partition("  # ")[0]):
            try:
                words = shlex.split(found[1].strip().rstrip(")"))
            except ValueError:  # a sign of the shell's in quotes
                continue
            command = group
            while words and words[0] in getattr(command, "commands", {}):
                command = command.commands[words.pop(0)]
            assert command is not group, line
            if not words and hasattr(command, "commands"):
                continue
            context = command.make_context("cerebrum", [word for word in words if word != "..."])
            names = {text.partition("=")[0] for text in context.params.get("set") or ()}
            assert names <= {*command.settable, "help"}, line


def test_the_readme_can_be_read_in_minutes() -> None:
    assert len(re.findall(r"\S*\w\S*", (ROOT / "README.md").read_text(encoding="utf-8"))) <= 650


def test_the_readme_names_the_commands_that_start_and_test_it() -> None:
    lines = [line.partition("#")[0].strip() for line in "".join(blocks("README.md", "sh")).splitlines()]
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert {"make demo", "make test"} <= set(lines) and {"demo", "test"} <= set(targets)


def test_the_list_of_pages_is_complete() -> None:
    index = ROOT / "docs" / "README.md"
    listed = {
        (index.parent / link).resolve() for link in re.findall(r"\]\(([^)#]+\.md)\)", index.read_text(encoding="utf-8"))
    }
    assert [page for page in PAGES if (ROOT / page).resolve() not in {*listed, index, ROOT / "README.md"}] == []


# Examples.


def commands(page: str) -> list[str]:
    """Commands of a page that can be run here, in its order."""
    text = ""
    for language, block in re.findall(
        r"^```(sh|console)\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S
    ):
        text += block if language == "sh" else block.partition("\n")[0].removeprefix("$ ") + "\n"
    lines = text.replace("\\\n", "").splitlines()
    return [line for line in lines if line and not SKIPPED.search(line)] + UNPRINTED.get(page, [])


def checkpoint_of(layers: int, folder: Path) -> Path:
    """A folder of safetensors with so many layers, of which all further ones are the first."""
    model = read_model("mistral")
    write_checkpoint(folder, model)
    write_json(folder / "config.json", {**model.config, "num_hidden_layers": layers})
    weights = dict(model.weights())
    for name in [name for name in weights if ".layers.0." in name]:
        for layer in range(3, layers):
            weights[name.replace(".0.", f".{layer}.")] = weights[name]
    write_weights(folder, weights)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of safetensors by repository."""
    directory = tmp_path_factory.mktemp("checkpoints")
    return {name: checkpoint_of(layers, directory / name) for name, layers in NEEDED["checkpoints"].items()}


@pytest.fixture(scope="module")
def adapters(seven: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    directory = tmp_path_factory.mktemp("adapters")
    names = ("style.gguf", "terse.gguf")
    return [write_adapter(directory / name, factors_for(seven, seed=seed)) for seed, name in enumerate(names)]


@pytest.fixture
def hub(page: str, thinker: Path, seven: Path, checkpoints: dict[str, Path]) -> Iterator[HubServer]:
    """A Hub of tiny models, and of datasets; a merge needs one with the layers of a 7B."""
    with HubServer() as hub:
        for repo_id, names in NEEDED["models"].items():
            files = dict.fromkeys(names, seven if page in (ABOUT_MODELS, "README.md") else thinker)
            if repo_id in checkpoints:
                files |= {path.name: path for path in checkpoints[repo_id].iterdir()}
            hub.repository(repo_id, files)
        for repo_id, tables in NEEDED["datasets"].items():
            hub.repository(f"{DATASETS}{repo_id}", {name: table(rows) for name, rows in tables.items()})
        yield hub


@pytest.fixture
def servers(thinker: Path) -> Iterator[dict[str, str]]:
    """Addresses of stand-ins for the servers of the pages, which end each reply where it begins."""
    with ExitStack() as stack:
        vocabulary = stack.enter_context(open_vocabulary(thinker))
        [end] = vocabulary.special_token_ids([vocabulary.special_token_text("eos")])
        urls = {}
        for address, (kind, model) in NEEDED["servers"].items():
            server = SERVERS[kind](lambda held, seed: end, vocabulary=vocabulary, context_size=4000)
            server.models = (model,)
            urls[address] = stack.enter_context(server).url
        yield urls


@pytest.fixture
def checkout(tmp_path: Path, thinker: Path, checkpoints: dict[str, Path], adapters: list[Path]) -> Path:
    """A directory with the files that the examples name, some of which pages print."""
    checkout = tmp_path / "checkout"
    (checkout / "src").mkdir(parents=True)
    for name in ("README.md", ".gitignore"):
        shutil.copy(ROOT / name, checkout)
    (checkout / "benchmarks").symlink_to(ROOT / "benchmarks")
    for name in LOCAL:
        shutil.copy(thinker, checkout / name)
    shutil.copytree(checkpoints["owner/repo"], checkout / "folder")
    for adapter in adapters:
        shutil.copy(adapter, checkout)
    stack, weights = blocks(ABOUT_MODELS, "yaml")
    texts = {
        "questions.txt": "What is 1 + 1?\n",
        "src/main.py": "print(1 + 1)\n",
        "exam.jsonl": blocks(EVALUATE, "json")[0],
        "mytools.py": blocks("docs/functions.md", "python")[0],
        "recipe.yaml": stack,
        "card.yaml": stack.replace("cerebrum-7b", "/home/author/Cerebrum-1.0-7b"),
        "weights.yaml": weights,
    }
    for name, text in texts.items():
        (checkout / name).write_text(text)
    (checkout / "report.pdf").write_bytes(pdf("It works."))
    (checkout / "report.txt").write_text("It works.\n")
    return checkout


@pytest.fixture(scope="module")
def guarded(guard_library: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedProcess]:
    with guarded_process(Guard(guard_library, tmp_path_factory.mktemp("guard"))) as process:
        yield process


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, line in NEEDED["programs"].items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.slow
def test_guard_notes_names_addresses_and_files(guarded: GuardedProcess, tmp_path: Path) -> None:
    if guarded.guard.library is None and ("CI" not in os.environ or sys.platform != "linux"):
        pytest.skip("needs a C compiler, on Linux")
    env = {**os.environ, **guarded.guard.environment}
    subprocess.run([sys.executable, "-c", OUTSIDE], cwd=tmp_path, env=env, check=True)
    *notes, left = guarded.guard.violations()
    created = [f"create {tmp_path}/{name}" for name in ("opened", "made", "made/in", "renamed", "linked", "symlinked")]
    assert notes == [*created, "lookup telemetry.invalid", "connect 192.0.2.1", "connect 192.0.2.2"]
    assert left.startswith("leave tmp") and guarded.guard.violations() == []


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sh") and page != "CONTRIBUTING.md"])
def test_examples_run_as_printed(
    page: str,
    command: CommandLine,
    hub: HubServer,
    servers: dict[str, str],
    checkout: Path,
    programs: Path,
    thinker: Path,
    guarded: GuardedProcess,
) -> None:
    """Every line works in the order of its page, connects only to this machine, and creates files in known places.

    Those are where the user works, and the directories that docs/settings.md names. What a line leaves in a clone of
    the repository is ignored by git.
    """
    own = [
        command.config,
        command.home / "data" / "cerebrum",
        command.home / ".cache" / "cerebrum",
        command.home / "hf",
    ]
    guard = replace(guarded.guard, directories=[checkout, *own])
    path = f"{programs}:{Path(COMMAND).parent}:/usr/bin:/bin"
    env = {"CEREBRUM_MAX_TOKENS": "8", "PATH": path, "EDITOR": "editor", "LAB_KEY": "sesame"}
    env |= hub.environment(command.home / "hf")
    put_layer(command.home / ".ollama/models", "registry.ollama.ai/library/qwen3/8b", thinker)
    if name := CONFIGURATION.get(page):
        (command.config / name).write_text(at(servers, "".join(blocks(page, "toml"))))
        shutil.copy(checkout / "style.gguf", command.config)
    lines, failures = commands(page), []
    needed = [model for named, model in NEEDED["installed"].items() if named in "".join(lines)]
    setup = [f"cerebrum pull {model}" for model in needed if page not in FROM_NOTHING]
    git(checkout, "init", "--quiet")
    git(checkout, "add", "--all", "--force")
    for line in (*setup, *lines):
        if "language=" in line:  # of a prompt that the page shows
            (command.config / "prompts" / "tr.md").write_text(blocks(page, "text")[-1])
        done = run_line(at(servers, shortened(line)), command, checkout, env | guard.environment, guarded)
        violations = guard.violations()
        if done.code not in SUCCESS or "Traceback" in done.err or violations:
            failures.append((line, done.code, done.err[-500:], violations))
    assert failures == []
    assert [line for line in git(checkout, "status", "--short").splitlines() if line.startswith("??")] == []


def git(directory: Path, *arguments: str) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # of a hook that tests
    return subprocess.run(
        ["git", *arguments], cwd=directory, env=env, capture_output=True, check=True, text=True
    ).stdout


def shortened(line: str, limit: int = 3) -> str:
    """The line without questions to the user, and with few questions of an evaluation."""
    line = ASKS.sub(r"\g<0>-y ", line)
    return EVALUATES.sub(rf"\g<0>--limit {limit} ", line)


def at(servers: Mapping[str, str], text: str) -> str:
    for name, url in servers.items():
        text = text.replace(name, url)
    return text


def run_line(
    line: str, command: CommandLine, directory: Path, env: Mapping[str, str], process: GuardedProcess
) -> Finished:
    """Run a line in a shell, or in that process if it is a single command."""
    if line.startswith("cerebrum ") and not SHELL.search(line.partition("  #")[0]):
        return process.run(command, shlex.split(line.replace(r"\$", "$"), comments=True)[1:], env, directory)
    environment = command.environment(env)
    ran = subprocess.run(
        ["bash", "-c", line], cwd=directory, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=120
    )
    return Finished(ran.returncode, ran.stdout.decode(), ran.stderr.decode())


def shape(text: str) -> str:
    """The text without its figures and the width of columns."""
    return "".join(" ".join(re.sub(r"(?<![@_\w])\d[\d.]*", "N", line).split()) + "\n" for line in text.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "console")])
def test_output_has_the_printed_shape(page: str, command: CommandLine) -> None:
    for block in blocks(page, "console"):
        prompt, printed = block.split("\n", 1)
        done = command.run(*shlex.split(shortened(prompt, limit=2))[2:])
        expected = [re.escape(shape(part)) for part in re.split(r"^\.\.\.\n", printed, flags=re.M)]
        assert re.fullmatch(r"(?:.*\n)*".join(expected), shape(done.out))


@pytest.mark.slow
def test_prompts_are_as_printed(command: CommandLine, mistral_model: Path) -> None:
    single = [{"role": "user", "content": "Are you conscious?"}]
    turns = (("user", "What is 15% of 80?"), ("assistant", "15% of 80 is 12."), ("user", "And of 90?"))
    conversation = [{"role": role, "content": content} for role, content in turns]
    cases = [(name, asked) for name in PRINTED_FORMATS for asked in (single, conversation)]
    for (name, asked), block in zip(cases, blocks(ABOUT_MODELS, "text"), strict=True):
        (command.home / "asked.json").write_text(json.dumps(asked))
        done = command.run("ask", "--dry-run", "--format", name, "-m", mistral_model, "--messages", "asked.json")
        assert done.out.strip() == block.strip()
    [block] = blocks(EVALUATE, "text")
    row = {"question": block.partition("\n")[0], "choices": re.findall(r"^\w\) (.+)", block, re.M), "answer": "B"}
    (command.home / "exam.jsonl").write_text(json.dumps(row))
    assert block.strip() in command.run("eval", "exam.jsonl", "-m", "nano", "--dry-run").out


def documented(page: str, heading: str) -> set[str]:
    """Keys in the list, the example or the text below a heading of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    section = text.partition(f"# {heading}\n\n")[2].partition("\n#")[0]
    if section.startswith("```json\n"):
        return set(json.loads(section.split("```")[1].removeprefix("json\n")))
    items = re.findall(r"^- (`.+?`):", section, re.M)
    return set(re.findall(r"`(\w+)`", "".join(items or section)))


@pytest.mark.slow
def test_reference_lists_the_keys_of_json_output(command: CommandLine) -> None:
    def run(*arguments: str) -> dict[str, Any]:
        found = command.run(*arguments, "--json").object
        assert isinstance(found, dict)
        return found

    question = ("ask", "-m", "nano", "--temperature", "2", "--seed", "1", "What is 15 + 7?")
    reply, vote = run(*question), run(*question, "--votes", "3")
    (command.home / "in.txt").write_text("What is 1 + 1?\n")
    assert command.run("batch", "in.txt", "-o", "out.jsonl", "-m", "nano").code == 0
    [row] = (command.home / "out.jsonl").read_text().splitlines()
    run_of = ("eval", "sums", "-m", "nano", "--limit", "2", "-o")
    report, _ = run(*run_of, "a.jsonl"), run(*run_of, "b.jsonl", "--temperature", "1")
    of_eval = json.loads((command.home / "a.jsonl").read_text().splitlines()[0])
    ask, batch, votes = "docs/ask.md", "docs/batch.md", "docs/votes.md"
    shown: dict[tuple[str, str], dict[str, Any]] = {
        (ask, "ask --json"): reply,
        (votes, "In JSON"): vote["votes"],
        (ask, "ask --dry-run --json"): run(*question, "--dry-run"),
        (batch, "Output"): json.loads(row),
        (EVALUATE, "In JSON"): report,
        (EVALUATE, "Rows of a run"): {key: of_eval[key] for key in of_eval.keys() - json.loads(row).keys()},
        (EVALUATE, "Keys of a comparison"): run("runs", "compare", "a.jsonl", "b.jsonl"),
    }
    optional = {"calls", "choices", "entry_point", "key", "reasoning_closed_at", "server", "served_model", "stub"}
    optional |= {"votes", "checked", "program", "program_output", "program_tokens", "program_unsupported"}
    differences = {place: (documented(*place) ^ keys.keys()) - optional for place, keys in shown.items()}
    assert differences == {place: set() for place in shown}
