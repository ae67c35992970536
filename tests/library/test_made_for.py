"""The models it was made for, each by small files of the same shape: pulled from a Hub, asked, and chatted with."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cases import rows
from checkpoint_models import read_model, write_checkpoint, write_json
from command_line import COMMAND, assert_error
from hub_user import CATALOGUED, HubUser, named
from person import OpenTerminal
from tiny_models import write_quantized

from scripts.nano.mistral_vocabulary import tokenizer_metadata

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]

SMALL_12B = "[models.cerebrum-12b]\nquantizations = {Q4_K_M = 19000000}\n"


class Made(NamedTuple):
    """A model by its name, the repository of its card, its prompt, and what follows the reply in the next one."""

    name: str
    card: str
    prompt: str
    after_reply: str


each_model = pytest.mark.parametrize("made", [Made(*row) for row in rows("made_for")], ids=lambda made: made.name)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """Small files of the five shapes by repository; none has a chat template, as those of TheBloke and froggeric."""
    folder = tmp_path_factory.mktemp("shapes")
    like_mistral: dict[str, Any] = {"vocabulary": tokenizer_metadata(), "chat_template": None}
    seven = write_quantized(folder / "seven.gguf", **like_mistral)
    mixture = write_quantized(folder / "mixture.gguf", experts=8, **like_mistral)
    weights = write_checkpoint(folder / "Mistral-C2F-7B", read_model("mistral"), shards=3)
    configuration = json.loads((weights / "tokenizer_config.json").read_text())
    configuration.pop("chat_template")
    write_json(weights / "tokenizer_config.json", configuration)
    return {
        CATALOGUED: {named("Q4_K_M"): seven},
        "bartowski/Cerebrum-1.0-8x7b-GGUF": {"Cerebrum-1.0-8x7b-Q4_K_M.gguf": mixture},
        "TheBloke/CollectiveCognition-v1-Mistral-7B-GGUF": {"collectivecognition-v1-mistral-7b.Q4_K_M.gguf": seven},
        "zhengchenphd/Mistral-C2F-7B": {path.name: path for path in weights.iterdir()},
    }


@pytest.fixture
def owner(hub_user: HubUser, files: dict[str, dict[str, Path]]) -> HubUser:
    (hub_user.command.config / "models.toml").write_text(SMALL_12B)
    for repo_id, contents in files.items():
        hub_user.hub.repository(repo_id, dict(contents))
    return hub_user


@each_model
def test_model_is_pulled_and_asked_in_its_format(owner: HubUser, made: Made) -> None:
    pulled = owner.pull("-y", f"{made.name}:Q4_K_M")
    assert pulled.err.startswith("note: ")  # what the catalogue says, before the download
    assert pulled.err.splitlines()[-1].startswith(f"installed {made.name}:Q4_K_M: ")
    shown = owner.run("ask", "--dry-run", "-m", made.name, "One?")
    assert (shown.code, shown.out) == (0, made.prompt)
    assert ("states no prompt format" in shown.err) == (made.name == "mistral-c2f-7b")
    answered = owner.run("ask", "-n", "4", "-m", made.name, "One?", "--stats")
    assert answered.code == 0 and "| temperature 0" in answered.err, answered.err
    continued = owner.run("ask", "-c", "--dry-run", "-m", made.name, "Two?")
    assert continued.out.startswith(made.prompt) and continued.out.endswith(made.after_reply)


@each_model
def test_model_has_two_turns_in_a_chat(owner: HubUser, made: Made, open_terminal: OpenTerminal) -> None:
    owner.pull("-y", f"{made.name}:Q4_K_M")
    words = ("chat", made.name, "-n", "4", "--session", "two")
    person = open_terminal(COMMAND, *words, size=(160, 40), **owner.environment({}))
    person.wait_for("| context ")
    for question in ("One?", "Two?"):
        person.type(f"{question}\r/stats\r", shows="| finish reason ")
    person.leave()
    screen = "\n".join(person.screen.lines)
    assert ("| temperature 0 |" in screen) == made.name.startswith("cerebrum-")  # others sample in a chat
    assert ("states no prompt format" in screen) == (made.name == "mistral-c2f-7b")
    saved = owner.command.messages("two")
    assert [message["role"] for message in saved] == ["user", "assistant"] * 2
    assert not any("</s>" in message["content"] for message in saved)


@each_model
def test_repository_of_the_card_leads_to_the_model(owner: HubUser, made: Made) -> None:
    planned = owner.run("pull", "--dry-run", made.card)
    assert planned.code == 0, planned.err
    assert f"note: {made.card} is {made.name} in the catalog" in planned.err
    assert f"cerebrum pull {made.name} would " in planned.err.splitlines()[-1]
    asked = owner.run("ask", "-m", made.card, "One?")
    assert_error(asked, 3, f"{made.name} is not downloaded")
    owner.pull("-y", f"{made.card}:Q4_K_M")
    assert owner.run("ask", "--dry-run", "-m", made.card, "One?").out == made.prompt


def test_dry_run_of_a_stack_names_what_it_pulls(owner: HubUser) -> None:
    planned = owner.run("pull", "--dry-run", "cerebrum-12b:Q4_K_M")
    stacked = "would pull cerebrum-7b:Q4_K_M, and stack 7 slices of it to cerebrum-12b:Q4_K_M"
    assert planned.err.splitlines()[-1] == f"cerebrum pull cerebrum-12b:Q4_K_M {stacked}"
    assert not owner.cache.exists()
