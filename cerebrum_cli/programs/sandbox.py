"""Programs that a model wrote, in bubblewrap, or in Monty where that does not work."""

from __future__ import annotations

from threading import Event, Lock

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.programs.bubblewrap import Bubblewrap, find_bubblewrap
from cerebrum_cli.programs.code import extract_program, first_program
from cerebrum_cli.programs.code_result import TIMEOUT_S, CodeResult
from cerebrum_cli.programs.monty import Monty, find_monty

FINDING = Lock()  # held where programs are parsed without warnings, which is a state of all threads


class Sandbox:
    """What runs programs, from `require_sandbox`; if it is Monty because bubblewrap does not work, with the `refusal`.

    `is_closed` ends all programs.
    """

    refusal: UsageError | None = None

    def __init__(self, runner: Bubblewrap | Monty, refusal: UsageError | None = None) -> None:
        self.runner = runner
        self.refusal = refusal
        self.is_closed = Event()

    @property
    def notice(self) -> NoticeEvent | None:
        """That programs run in Monty, and why, unless the user has chosen it."""
        if self.refusal is None:
            return None
        problem = f"programs run in Monty, which has only a part of Python: {self.refusal.message}"
        return NoticeEvent(problem, "see `sandbox` in cerebrum doctor")

    def run(self, code: str, test: str, timeout_s: float = TIMEOUT_S) -> CodeResult:
        """Run a program and its test. Raises UsageError if the sandbox fails."""
        return self.runner.run(code, test, timeout_s, self.is_closed)

    def evaluate(self, text: str, timeout_s: float) -> CodeResult:
        """Run a program, which may be fenced, and print values as an interactive interpreter does."""
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
    """The sandbox that the setting `sandbox` chooses, which is proven to isolate programs here; UsageError if not."""
    if choice == "monty":
        return Sandbox(find_monty())
    try:
        return Sandbox(find_bubblewrap())
    except UsageError as error:
        if choice == "bwrap":
            raise
        return Sandbox(find_monty(), error)
