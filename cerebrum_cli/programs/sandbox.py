"""Programs that a model wrote, in Monty or in bubblewrap."""

from __future__ import annotations

from threading import Event, Lock

from cerebrum_cli.programs.bubblewrap import Bubblewrap, find_bubblewrap
from cerebrum_cli.programs.code import extract_program, first_program
from cerebrum_cli.programs.code_result import TIMEOUT_S, CodeResult
from cerebrum_cli.programs.monty import Monty, find_monty

FINDING = Lock()  # held where programs are parsed without warnings, which is a state of all threads


class Sandbox:
    """What runs programs, from `require_sandbox`. `is_closed` ends all programs."""

    def __init__(self, runner: Bubblewrap | Monty) -> None:
        self.runner = runner
        self.is_closed = Event()

    def run(self, code: str, test: str, timeout_s: float = TIMEOUT_S) -> CodeResult:
        """Run a program and its test. Raises UsageError if the sandbox fails."""
        return self.runner.run(code, test, timeout_s, self.is_closed)

    def evaluate(self, text: str, timeout_s: float) -> CodeResult:
        """Run a program, which may be fenced, and print the values of its expressions, in Monty only of the last."""
        return self.runner.evaluate(text, timeout_s, self.is_closed)

    def run_reply(self, reply: str, timeout_s: float) -> tuple[str, CodeResult]:
        """Run the first program of a reply: its code, and how it ended."""
        with FINDING:
            code = first_program(reply)
        return code, self.run(code, "", timeout_s)

    def test_reply(self, reply: str, prompt: str, entry_point: str, test: str) -> tuple[str | None, CodeResult | None]:
        """Test the function of this name in a reply to a prompt that begins it: its code, and how its test ended.

        Without a name, the reply is the program. Both are None if it has none.
        """
        code = reply or None
        if entry_point:
            with FINDING:
                code = extract_program(reply, prompt, entry_point)
        return code, None if code is None else self.run(code, test)


def require_sandbox(choice: str = "auto") -> Sandbox:
    """What the setting `sandbox` chooses, proven to isolate programs here: Monty by default. Raises UsageError if not.

    Monty works everywhere, and ran programs of models as bubblewrap did: see `benchmarks/sandboxes.py`.
    """
    return Sandbox(find_bubblewrap() if choice == "bwrap" else find_monty())
