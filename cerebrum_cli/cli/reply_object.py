"""The object that `ask --json` prints."""

from __future__ import annotations

from pathlib import Path

from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.replies.reply import Reply

TIMING_DIGITS = {  # decimals of what `--json` prints
    "load_s": 4,
    "prefill_s": 4,
    "ttft_s": 4,
    "decode_s": 4,
    "prompt_tokens_per_second": 2,
    "tokens_per_second": 2,
    "draft_n": 0,
    "draft_n_accepted": 0,
}


def reply_object(
    reply: Reply,
    model: str,
    file: Path | None,
    format_name: str,
    final_answer: str | None,
    votes: JsonObject | None,
    extracted: str | None,
) -> JsonDict:
    """Texts, counts and timings of a reply; `file` is that of the model, None behind a server. Rates are per second."""
    finish = reply.finish
    return {
        "model": model,
        "file": file and str(file),
        "format": format_name,
        "text": reply.text,
        "final_answer": final_answer,
        "extracted": extracted,
        "finish_reason": finish.reason,
        "reasoning_closed_at": reply.reasoning_closed_at,
        "prompt_tokens": finish.prompt_tokens or None,
        "cached_tokens": finish.cached_tokens if finish.context_size else None,
        "completion_tokens": finish.completion_tokens,
        "seed": finish.seed,
        "reasoning": reply.reasoning,
        "votes": votes,
        "timings": {name: round(getattr(finish.timings, name), digits) for name, digits in TIMING_DIGITS.items()},
    }
