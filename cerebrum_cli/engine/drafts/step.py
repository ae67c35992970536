"""Add drafts to a step."""

from __future__ import annotations

from collections.abc import Callable

from cerebrum_cli.engine.backend import Backend
from cerebrum_cli.engine.drafts.allocation import draft_lengths
from cerebrum_cli.engine.drafts.drafter import DraftToken
from cerebrum_cli.engine.scheduler import Step
from cerebrum_cli.engine.sequence import Sequence


def add_drafts(step: Step, backend: Backend, has_cells: Callable[[int], bool]) -> Step:
    """Add drafts to a step in which sequences decode, where they pay and memory `has_cells` for so many rows."""
    sequences = [share.sequence for share in step.shares]
    costs = next((one.request.step_costs for one in sequences if one.request.step_costs), None)
    if costs is None or not backend.can_trim or any(one.is_prefilling for one in sequences):
        return step
    drafts = [draft(one, backend.capacity) for one in sequences]
    probabilities = [[each.probability for each in tokens] for tokens in drafts]
    lengths = draft_lengths(probabilities, costs, backend.batch_size, is_equal=not backend.kv_unified)
    drafted = step.with_drafts(
        tuple(each.token for each in tokens[:length]) for tokens, length in zip(drafts, lengths, strict=True)
    )
    return drafted if has_cells(drafted.size) else step


def draft(sequence: Sequence, capacity: int) -> list[DraftToken]:
    """Guess a sequence's next tokens, at most as many as leave room to sample one after them."""
    if sequence.drafter is None:
        return []
    sequence.lookup = sequence.lookup or sequence.drafter.start(sequence.generated)
    return sequence.drafter.draft(sequence.lookup, sequence.max_length(capacity) - sequence.length - 1)
