"""The finished rows of a run, read from the objects of its file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cerebrum_cli.core.decision import PROBABILITY_OF
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject, from_json, known_values
from cerebrum_cli.core.row_fields import RowError, RowId
from cerebrum_cli.core.text import Texts
from cerebrum_cli.results.rows import Key


@frozen
class Sample:
    """A reply, and the program that was written after it, if one was."""

    text: str
    finish_reason: str
    program: str | None = None
    program_output: str | None = None
    program_unsupported: bool = False
    program_tokens: int = 0


@frozen
class RunRow:
    """A finished row; one that could not be asked has no `samples`.

    `digest` identifies what is asked. A decision has an `answer`, unless it is left undecided, and the `probabilities`
    of its choices if it is labelled.
    """

    id: RowId
    digest: str
    samples: tuple[Sample, ...]
    probabilities: Mapping[str, float]
    prompt: str = ""
    reference: str = ""
    choices: Texts = ()
    stub: str = ""
    entry_point: str = ""
    completion_tokens: int = 0
    answer: str | None = None
    first_word: str = ""
    error: RowError | None = None


def read_row(object: JsonObject) -> RunRow:
    """The row of an object. Raises one of DAMAGE for an object of something else."""
    known = {key: value for key, value in known_values(RunRow, object).items() if value is not None}
    samples = [known_values(Sample, sample) for sample in samples_of(object)]
    digest = Key.parse(object["key"]).digest.decode()
    row = from_json(RunRow, {**known, "digest": digest, "samples": samples, "probabilities": probabilities_of(object)})
    if row.samples and not row.reference:
        raise ValueError("an answered row without its right answer")
    if row.probabilities and row.reference not in row.probabilities:
        raise ValueError("the right answer is none of the choices")
    return row


def samples_of(object: JsonObject) -> Sequence[JsonObject]:
    """The objects of the samples; a decision has one, its likeliest choice, even if it is left undecided."""
    if "answer" in object:
        return [] if object["error"] else [{"text": likeliest(probabilities_of(object)), "finish_reason": "stop"}]
    if object["finish_reason"] is None:
        return []
    samples: Sequence[JsonObject] = object["votes"]["samples"] if object["votes"] else [object]
    return samples


def probabilities_of(object: JsonObject) -> JsonDict:
    """The probabilities of a decision, which are text in a table."""
    names = [key for key in object if key.startswith(PROBABILITY_OF) and object[key] is not None]
    return {key.removeprefix(PROBABILITY_OF): float(object[key]) for key in names}


def likeliest(probabilities: Mapping[str, float]) -> str:
    """The most probable choice; empty without any."""
    return max(probabilities, key=probabilities.__getitem__, default="")
