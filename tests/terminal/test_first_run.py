"""A user without a model chooses from a list, in a real terminal."""

import re
from pathlib import Path

import pytest
from command_line import COMMAND, ROOT
from hub_server import Fault
from hub_user import HubUser
from person import OpenTerminal

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]


def test_ask_without_a_model_lists_some_and_can_be_declined(open_terminal: OpenTerminal) -> None:
    window = open_terminal(COMMAND, "ask", "hi")
    window.wait_for_output("Pull which one? [1 to 10, q to quit; Enter: 1] ")
    assert window.screen.lines[0].startswith("no model is installed; choose one: tested ones first, then those that ")
    window.resize(40, 24)
    window.type("11\r", shows="'11' is neither a number from 1 to 10")
    window.wait_for_output("nor q\r\nPull which one? [1 to 10, q to quit;\r\nEnter: 1] ")
    window.type("q\r")
    assert window.end() == 3
    assert "error: no model is installed" in window.screen.lines
    assert any(line.startswith(" hint: cerebrum pull  (choose") for line in window.screen.lines)


@pytest.mark.parametrize(("key", "code", "ending"), [("q\r", 1, "\nnothing pulled\r\n"), ("\x03", 130, "^C\r\n")])
def test_pull_without_a_model_can_be_declined(open_terminal: OpenTerminal, key: str, code: int, ending: str) -> None:
    window = open_terminal(COMMAND, "pull")
    window.wait_for_output("Pull which one?")
    window.type(key)
    assert window.end() == code
    assert window.output.endswith(ending)


@pytest.mark.parametrize("command", [("ask", "-n", "4", "Why?"), ("chat",)], ids=lambda words: words[0])
def test_first_run_pulls_the_chosen_model_after_an_interruption_and_continues(
    open_terminal: OpenTerminal, hub_user: HubUser, chatml_model: Path, command: tuple[str, ...]
) -> None:
    """The tested model, which is the first of the list, is on the Hub of the tests."""
    hub_user.hub.repository("someone/tiny-GGUF", {"tiny-Q8_0.gguf": chatml_model})
    (hub_user.command.config / "models.toml").write_bytes((ROOT / "tests" / "data" / "first_models.toml").read_bytes())
    hang = hub_user.hub.arm(Fault(part="cdn", hang_after=1000))
    window = open_terminal(COMMAND, *command, **hub_user.environment({}))
    window.wait_for_output("Pull which one?")
    assert re.search(r"^1   tiny +\d+ kB ", "\n".join(window.screen.lines), re.MULTILINE)
    window.type("1\r")
    hub_user.hub.log.wait_for(lambda request: request.part == "cdn")
    window.type("\x03", shows=" hint: run it again to resume")
    assert window.end() == 130
    hang.release()
    window = open_terminal(COMMAND, *command, **hub_user.environment({}))
    window.wait_for_output("Pull which one?")
    window.type("\r")
    window.wait_for_output("installed tiny:Q8_0:")
    if command == ("chat",):
        window.wait_for(">")
        window.type("\x04")
    assert window.end() == 0
    assert hub_user.listed()[0]["reference"] == "tiny:Q8_0"
