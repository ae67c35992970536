"""The tree of errors a user can meet, each with a message and a hint. Any other exception is a bug with a traceback."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from cerebrum_cli.core.text import short_name

SOME_FAILED = 6  # exit code of a batch or an evaluation some of whose rows failed
# Errors raised by reading a value of an unexpected shape.
DAMAGE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class CerebrumError(Exception):
    """An error a user can act on: one line for the problem, one for the fix."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @classmethod
    def invalid(cls, name: str, value: object, expected: str, where: str = "") -> Self:
        """Error for the value of an option, a variable or a key; `where` precedes the message."""
        return cls(f"{where}invalid {name}: {value!r}", f"it must be {expected}")

    @classmethod
    def conflict(cls, first: str, second: str, hint: str = "omit one of them", where: str = "") -> Self:
        """Error for two options or keys that exclude each other."""
        return cls(f"{where}{first} and {second} cannot be used together", hint)


class UsageError(CerebrumError):
    """Invalid input: an option, a file or a value."""

    exit_code = 2


class GrammarError(UsageError):
    """A grammar or JSON schema that llama.cpp cannot parse."""


class ModelNotFound(CerebrumError):
    """A reference to a model that is not installed; `pullable` is a model to offer for download."""

    exit_code = 3

    def __init__(self, message: str, hint: str, pullable: str | None = None) -> None:
        super().__init__(message, hint)
        self.pullable = pullable


class UnknownToken(CerebrumError):
    """A token id that is not in the model's vocabulary: it comes from another model."""


SPLIT = ", or split it into rows of cerebrum batch"


class PromptTooLong(CerebrumError):
    """The prompt fills the context and leaves no room for a reply."""

    exit_code = 4

    @classmethod
    def for_context(cls, prompt_tokens: str, context_size: int, advice: str = SPLIT) -> PromptTooLong:
        """Error for a prompt with this number of tokens; `prompt_tokens` may be "at least 9000"."""
        return cls(f"the prompt has {prompt_tokens} tokens, but the context has {context_size}", f"shorten it{advice}")


class NoAnswer(CerebrumError):
    """The reply has no final answer where one is required, or is too incomplete to satisfy its grammar."""

    exit_code = 5


class Interrupted(CerebrumError):
    """A signal ended the command; partial output is saved."""

    def __init__(self, signum: int, hint: str = "") -> None:
        super().__init__("interrupted", hint)
        self.exit_code = 128 + signum


class ModelFileError(CerebrumError):
    """A file that is not a GGUF model this build of llama.cpp can open."""

    exit_code = 2

    def __init__(self, path: Path, problem: str, hint: str = "") -> None:
        super().__init__(f"{short_name(path)}: {problem}", hint or "check the source of the file, or pull it again")


class FormatError(CerebrumError):
    """No prompt format for a model, or one that cannot render the conversation."""


class PullError(CerebrumError):
    """A failed download."""


class ConfigError(CerebrumError):
    """An invalid configuration file; the message names the file, the place and the key."""

    exit_code = 2


class SessionError(CerebrumError):
    """A session that cannot be found, read or saved."""


class BatchError(CerebrumError):
    """A batch result that cannot be started, resumed or written without losing data; finished rows are kept."""


class MergeError(CerebrumError):
    """Models that do not fit a recipe or each other, or a merge that cannot be written; no file is left behind."""


class OutputError(CerebrumError):
    """Standard output is closed, or cannot be written to: answers that follow would be lost."""

    @classmethod
    def closed(cls) -> OutputError:
        return cls("standard output is closed", "redirect it to a file, or to /dev/null")


class EndpointError(CerebrumError):
    """A server that cannot be reached, refuses, or serves something else than is needed."""


class NoServerError(EndpointError):
    """No server answers; what is finished is kept, and the same command resumes."""

    exit_code = 7


class EngineError(CerebrumError):
    """llama.cpp failed; `log` holds the last lines of its log."""

    def __init__(self, message: str, hint: str = "", log: Sequence[str] = ()) -> None:
        super().__init__(message, hint)
        self.log = tuple(log)
