"""What `cerebrum tune` takes, and what it brings: each use with what was measured for it, and with the usual settings.

Needs `cerebrum pull starter`.
Usage: python benchmarks/tune.py [--shape FILE] [--only MODEL] [--runs N] [--quick] [--dry]

The starter is tuned, and FILE, which benchmarks/mistral_shape.py writes, each in a folder where nothing was measured or
kept before. Then each use is measured whole, from the start of its process to its end, with and without --no-profile in
turn; of the starter after a warm-up of both. Nothing is kept between runs. Where the settings of a use are as usual
there is nothing to compare: its row says so.

chat      Questions are piped in, one turn after the other.
ask       A short question and a longer answer.
ask-long  A long text and four tokens of an answer; of FILE also the speed at which it is read.
batch     Questions of a few words; their answers go on to the last token, and all are as long.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from answering import model_path
from harness import ROOT, SCRIPT, Row, Run, isolated_environment, medians, record, run

ALLOWED_S = 120
USUAL = "--no-profile"
PROBE = (ROOT / "cerebrum_cli" / "probe.txt").read_text(encoding="utf-8")
STORY = "Tell me a long story about seven apples and a boat."
TURNS = (
    STORY,
    "What came of the boat? Tell it in many words.",
    "Tell the same story again, as the boat would tell it.",
    "Tell me what the seventh apple thought of all this.",
)
LEAST = ">= 0.97"


class Subject(NamedTuple):
    """A model, how its tables call it, and how much is asked of it; `text` is a long prompt's characters."""

    name: str
    path: str
    options: tuple[str, ...]
    runs: int
    text: int
    reply: int
    turns: int
    rows: int
    warms_up: bool


class Measured(NamedTuple):
    """One process: its wall seconds, and the tokens a second at which its prompt was read, where that was asked."""

    seconds: float
    read: float = 0.0


Measure = Callable[[Sequence[str]], Measured]
"""Measure a use once, with further options."""


def main() -> None:
    """Tune and measure the starter, and FILE; record it unless this is a trial."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", metavar="FILE", help="a model of Mistral-7B's shape")
    parser.add_argument("--only", choices=("starter", "shape"), metavar="MODEL", help="starter or shape")
    parser.add_argument("--runs", type=int, help="pairs [default: 3, of FILE 2]")
    parser.add_argument("--quick", action="store_true", help="tune --quick, and do not touch the table of results")
    parser.add_argument("--dry-run", action="store_true", help="do not touch the table of results")
    given = parser.parse_args()
    subjects = []
    if given.only != "shape":
        starter = str(model_path("starter"))
        subjects.append(Subject("starter", starter, (), given.runs or 3, 7000, 48, 4, 64, warms_up=True))
    if given.shape and given.only != "starter":
        form = ("--format", "cerebrum")
        subjects.append(Subject("7B shape", given.shape, form, given.runs or 2, 1600, 48, 3, 16, warms_up=False))
    for subject in subjects:
        with tempfile.TemporaryDirectory() as name:
            compare(subject, Path(name), given.quick, given.dry_run or given.quick)


def compare(subject: Subject, directory: Path, quick: bool, dry: bool) -> None:
    """Tune a model, and compare each use of it as it was tuned with the usual settings."""
    environment = isolated_environment(directory)
    tuned = run([SCRIPT, "tune", subject.path, "--json", *(["--quick"] if quick else [])], environment=environment)
    profile = json.loads(tuned.output)
    took = tuned.seconds / ALLOWED_S
    row = Row(f"cerebrum tune, {subject.name}", f"{tuned.seconds:.0f} s", f"{ALLOWED_S} s allowed", took, "<= 1.25")
    record([row], dry)
    for name, use in profile["uses"].items():
        print(f"{name}: {settings_text(use['settings'])}, gain {use['gain']}, agreement {use['agreement']}")
    print(f"a prompt is long from {profile['long_from']} tokens on", flush=True)
    uses = Uses(subject, directory, environment)
    for use_name in ("ask", "chat", "batch"):
        found = measured(getattr(uses, use_name), subject, profile["uses"][use_name]["settings"])
        record([whole_row(use_name, subject, profile["uses"][use_name]["settings"], found)], dry)
    record(long_rows(uses, subject, profile), dry)


def settings_text(settings: Mapping[str, Any]) -> str:
    """Return settings as a table shows them."""
    return ", ".join(f"{name} {value}" for name, value in settings.items()) or "default settings"


def measured(use: Measure, subject: Subject, settings: Mapping[str, Any]) -> list[tuple[Measured, Measured]]:
    """Measure a use with the usual settings and as it was tuned, in turn; nothing where there is no difference."""
    if not settings:
        return []
    if subject.warms_up:
        use([USUAL]), use([])
    return [(use([USUAL]), use([])) for _ in range(subject.runs)]


def whole_row(
    use: str, subject: Subject, settings: Mapping[str, Any], found: Sequence[tuple[Measured, Measured]]
) -> Row:
    """Return how many times as fast a whole process is as it was tuned."""
    what = f"tuned for {use}: default settings / profile, {subject.name}"
    if not found:
        return Row(what, "default settings", "not measured", 1.0, LEAST)
    usual, tuned, ratio = medians([(usual.seconds, tuned.seconds) for usual, tuned in found])
    return Row(what, f"{tuned:.2f} s ({settings_text(settings)})", f"{usual:.2f} s", ratio, LEAST)


def long_rows(uses: Uses, subject: Subject, profile: Mapping[str, Any]) -> list[Row]:
    """Return the rows of a long prompt: the whole process, and of the 7B shape the speed at which it is read."""
    from_tokens, name = profile["long_from"], "ask-long"
    if profile["uses"]["ask"]["settings"] != profile["uses"]["ask-long"]["settings"] and (
        from_tokens is None or from_tokens > uses.long_tokens
    ):
        print(f"the long prompt, of about {uses.long_tokens} tokens, is asked like a short one: it is not long enough")
        name = "ask"
    settings = profile["uses"][name]["settings"]
    found = measured(uses.ask_long, subject, settings)
    rows = [whole_row("ask-long", subject, settings, found)]
    if subject.name == "starter":
        return rows
    what = f"prefill of {uses.prompt_tokens} tokens, {subject.name}, profile / default settings"
    if not found:
        return [*rows, Row(what, "default settings", "not measured", 1.0, ">= 1.3")]
    tuned, usual, ratio = medians([(tuned.read, usual.read) for usual, tuned in found])
    return [*rows, Row(what, f"{tuned:.1f} tok/s", f"{usual:.1f} tok/s", ratio, ">= 1.3")]


class Uses:
    """The uses of a model, each as one process that keeps nothing for the next."""

    def __init__(self, subject: Subject, directory: Path, environment: Mapping[str, str]) -> None:
        self._subject = subject
        self._environment = environment
        self._text, self._questions, self._answers = (
            directory / name for name in ("long.txt", "rows.txt", "rows.jsonl")
        )
        self._text.write_text(long_text(subject.text), encoding="utf-8")
        rows = (f"How many are {number} apples and {number % 7 + 2} pears?\n" for number in range(1, subject.rows + 1))
        self._questions.write_text("".join(rows), encoding="utf-8")
        self._said: str | None = None

    @property
    def long_tokens(self) -> int:
        """About how many tokens the long text has, as the command guesses before there is a vocabulary."""
        return self._subject.text // 4

    @property
    def prompt_tokens(self) -> int:
        """How many tokens the long text's prompt has."""
        found: int = json.loads(self._run("ask", "-f", str(self._text), "--dry-run", "--json").output)["prompt_tokens"]
        return found

    def ask(self, further: Sequence[str]) -> Measured:
        """Ask for a longer answer."""
        return self._asked(STORY, "-n", str(self._subject.reply), *further)

    def ask_long(self, further: Sequence[str]) -> Measured:
        """Have a long text read."""
        return self._asked("-f", str(self._text), "-n", "4", *further)

    def chat(self, further: Sequence[str]) -> Measured:
        """Talk; say so where not the same was said as the time before."""
        turns = "".join(f"{turn}\n" for turn in TURNS[: self._subject.turns])
        talk = self._run("chat", "-n", str(self._subject.reply // 2), "--no-cache", *further, given=turns)
        if self._said not in (None, talk.output):
            print(f"not the same was said in {len(talk.output)} characters as in {len(self._said or '')} before")
        self._said = talk.output
        return Measured(talk.seconds)

    def batch(self, further: Sequence[str]) -> Measured:
        """Answer many questions."""
        places = (str(self._questions), "-o", str(self._answers), "--restart")
        done = self._run("batch", *places, "-n", "16", "--ignore-eos", *further)
        rows = [json.loads(line) for line in self._answers.read_text(encoding="utf-8").splitlines()]
        if [row["completion_tokens"] for row in rows] != [16] * self._subject.rows:
            raise RuntimeError(f"other work was done than was asked for: {rows}")
        return Measured(done.seconds)

    def _asked(self, *given: str) -> Measured:
        """Ask, and return what that took; RuntimeError where the answer ended sooner than it should."""
        done = self._run("ask", *given, "--no-cache", "--no-log", "--json")
        reply = json.loads(done.output)
        if reply["finish_reason"] != "length" or reply["cached_tokens"]:
            raise RuntimeError(f"other work was done than was asked for: {reply}")
        return Measured(done.seconds, reply["timings"]["prompt_tokens_per_second"])

    def _run(self, command: str, *arguments: str, given: str | None = None) -> Run:
        model = ("-m", self._subject.path, *self._subject.options)
        return run([SCRIPT, command, *model, *arguments], given, self._environment)


def long_text(size: int) -> str:
    """Return a text of so many characters, no two parts of which begin alike."""
    parts = (f"Part {number}. {PROBE}\n\n" for number in range(1, size // len(PROBE) + 2))
    return "".join(parts)[:size]


if __name__ == "__main__":
    main()
