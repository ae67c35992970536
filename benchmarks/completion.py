"""The peer llama-completion, with the context of `cerebrum ask` and with its own default, the trained context.

`cerebrum ask` allocates a KV cache just long enough; a longer one takes memory, and time to clear.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.answering import THREADS
from benchmarks.harness import PEER_PROGRAMS, Environment, run


class Peer(NamedTuple):
    """A command, and the words that describe its context."""

    command: list[str]
    context: str


def completion_peers(ask: Sequence[str], model: str, tokens: int, environment: Environment) -> list[Peer]:
    """llama-completion with the rendered prompt of a question; RuntimeError if it evaluates another number of tokens.

    First with the context that the question gets, then with its own default.
    """
    prompt = preview(ask, environment)
    context = logged(r"llama_context: n_ctx += (\d+)", [*ask, "--set", "verbose=on"], environment)
    context = max(context, prompt["prompt_tokens"] + 4)  # it refuses longer prompts
    text = prompt["prompt"].removeprefix("<s>")  # llama-completion adds it by itself
    command = [str(PEER_PROGRAMS / "llama-completion"), "--no-warmup", "-m", model, "-p", text]
    command += ["-n", str(tokens), "--temp", "0", "-t", str(THREADS), "-no-cnv", "--no-display-prompt"]
    peers = [Peer([*command, "-c", str(context)], f"-c {context}, as ours"), Peer(command, "its default context")]
    for peer in peers:
        evaluated = logged(r"prompt eval time =.*/ *(\d+) tokens", peer.command, environment)
        if evaluated != prompt["prompt_tokens"]:
            raise RuntimeError(f"llama-completion: {evaluated} prompt tokens, not {prompt['prompt_tokens']}")
    return peers


def preview(ask: Sequence[str], environment: Environment) -> dict[str, Any]:
    """JSON that `--dry-run` prints for a question."""
    prompt: dict[str, Any] = json.loads(run([*ask, "--dry-run", "--json"], environment=environment).output)
    return prompt


def logged(pattern: str, command: Sequence[str], environment: Environment) -> int:
    """Number that a command writes to its log."""
    errors = run(command, environment=environment).errors
    found = re.search(pattern, errors)
    if found is None:
        raise RuntimeError(f"{command} does not log {pattern}: {errors[-2000:]}")
    return int(found[1])
