"""Run local GGUF reasoning models, each in its own prompt format.

A model replies to a conversation: iterate the reply.

    from cerebrum_cli import open_model

    with open_model("qwen3.5-4b", temperature=0.6) as model:
        for piece in model.reply("Why is the sky blue?"):
            print(piece, end="")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["CerebrumError", "Conversation", "MajorityVote", "Model", "Reply", "open_model"]

_MODULES = {
    "__version__": "core.version",
    "CerebrumError": "core.errors",
    "Conversation": "core.conversation",
    "MajorityVote": "replies.majority_vote",
    "Model": "replies.interface",
    "Reply": "replies.reply",
    "open_model": "replies.interface",
}

if TYPE_CHECKING:
    from cerebrum_cli.core.conversation import Conversation
    from cerebrum_cli.core.errors import CerebrumError
    from cerebrum_cli.core.version import __version__ as __version__
    from cerebrum_cli.replies.interface import Model, open_model
    from cerebrum_cli.replies.majority_vote import MajorityVote
    from cerebrum_cli.replies.reply import Reply


def __getattr__(name: str) -> Any:
    """Import a name of the interface when it is first used: the command line needs few of them."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
