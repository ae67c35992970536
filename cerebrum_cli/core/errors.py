"""Everything that can go wrong for a user, as one tree; each error says what is and what to do.

    CerebrumError                 exit 1
    |-- UsageError                exit 2   a value, file or list that cannot be read as asked
    |-- ModelNotFound             exit 3   unknown, or known and not here
    |   `-- NoModel               exit 3   nothing is pulled at all
    |-- PromptTooLong             exit 4
    |-- NoAnswer                  exit 5
    |-- Interrupted               exit 128 + signal
    |-- ModelFileError            exit 1   truncated, foreign, unreadable
    |-- FormatError               exit 1   no format, or a template that cannot be rendered
    |-- GrammarError              exit 2
    |-- PullError                 exit 1   `- HubError in catalogue/hub_errors.py, where trying again may help
    |-- ConfigError               exit 1   config.toml or models.toml
    |-- SessionError              exit 1   a session, or the database of them
    |-- BatchError                exit 1   a batch's result, or what is kept of one on its way
    |-- MergeError                exit 1   models that do not fit together, or their merge that cannot be written
    |-- OutputError               exit 1   standard output cannot be written
    `-- EngineError               exit 1   llama.cpp gave up

A bug is none of these and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class CerebrumError(Exception):
    """A failure a user can act on: one line saying what is, one saying what to do."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(CerebrumError):
    """Something the user gave cannot be read as asked."""

    exit_code = 2


class GrammarError(UsageError):
    """A grammar or JSON schema that llama.cpp does not understand."""


class ModelNotFound(CerebrumError):
    """A model reference that names nothing on this machine; `offer` is a model that could be pulled on the spot."""

    exit_code = 3

    def __init__(self, what: str, do: str, offer: str | None = None) -> None:
        super().__init__(what, do)
        self.pullable = offer


class NoModel(ModelNotFound):
    """No reference was given and no model is here."""

    def __init__(self) -> None:
        super().__init__(
            "no model is here yet",
            "cerebrum pull cerebrum-7b  (4.4 GB, for reasoning)  or  cerebrum pull starter  (98 MB, to try it out)",
            offer="starter",
        )


class PromptTooLong(CerebrumError):
    """The prompt leaves no room for an answer in the context."""

    exit_code = 4

    def __init__(self, prompt_tokens: int, context_size: int, trained_context: int) -> None:
        grow = f"raise --ctx (this model was trained to {trained_context})" if context_size < trained_context else ""
        super().__init__(
            f"the prompt has {prompt_tokens} tokens and the context holds {context_size}",
            " or ".join(filter(None, ["shorten it", grow])),
        )
        self.prompt_tokens = prompt_tokens
        self.context_size = context_size


class NoAnswer(CerebrumError):
    """`--final` found no final answer in what the model said."""

    exit_code = 5


class Interrupted(CerebrumError):
    """A signal ended the work; what was said so far has been kept."""

    def __init__(self, signum: int, do: str = "") -> None:
        super().__init__("interrupted", do)
        self.exit_code = 128 + signum


class ModelFileError(CerebrumError):
    """A file that is not a GGUF model this build can open."""

    def __init__(self, path: Path, problem: str, do: str = "") -> None:
        super().__init__(f"{path}: {problem}", do or "check where the file came from, or pull it again")
        self.path = path


class FormatError(CerebrumError):
    """No way to write this conversation for this model."""


class PullError(CerebrumError):
    """A model could not be fetched."""


class ConfigError(CerebrumError):
    """A configuration file is malformed; the message names file, place and key."""


class SessionError(CerebrumError):
    """A session that cannot be found, kept or read."""


class BatchError(CerebrumError):
    """A batch's result cannot be begun, continued or written without losing something; what was finished is kept."""


class MergeError(CerebrumError):
    """Models that do not fit a recipe or each other, or a merge that cannot be written; nothing is left of it."""


class OutputError(CerebrumError):
    """The answer cannot be written: the disk is full, or the terminal is gone."""


class EngineError(CerebrumError):
    """llama.cpp failed while it worked; `log` holds its last lines."""

    def __init__(self, what: str, do: str = "", log: Sequence[str] = ()) -> None:
        super().__init__(what, do)
        self.log = tuple(log)
