"""Votes with a wanted error: `eval --calibrate` keeps labelled votes, `batch --calibration` decides rows by them."""

import csv
import json
from pathlib import Path

import pytest
from command_line import CommandLine, Finished, assert_error, fixed_reply_grammar

SAMPLING = ("-m", "nano", "--temperature", "1.0")
WANTED = ("--votes", "4", "--calibration", "sums", "--max-error", "0.5")


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    user = CommandLine(tmp_path_factory.mktemp("votes"))
    sums = [(a, b) for a in range(11, 40, 3) for b in range(12, 50, 7)]
    rows = [{"question": f"{a} + {b} =", "answer": str(a + b)} for a, b in sums]
    (user.home / "sums.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (user.home / "more.txt").write_text("".join(f"{a + 1} + {b} =\n" for a, b in sums[::5]))
    done = run(user, "eval", "sums.jsonl", "--samples", "4", "--calibrate", "sums", *SAMPLING)
    assert done.code == 0 and f"calibration sums saved: {len(sums)} questions" in done.err
    assert "the smallest error that can be promised is" in done.err
    return user


def run(user: CommandLine, *words: str) -> Finished:
    return user.run(*words, directory=user.home)


def test_rows_are_decided_by_the_share_of_their_winner(user: CommandLine) -> None:
    done = run(user, "batch", "more.txt", "-o", "out.jsonl", *WANTED, *SAMPLING)
    assert done.code == 0
    rows = [json.loads(line) for line in (user.home / "out.jsonl").read_text().splitlines()]
    assert all((row["final_answer"] is not None) == row["decided"] for row in rows)
    decided = [row["votes"]["agreement"] for row in rows if row["decided"]]
    others = [row["votes"]["agreement"] for row in rows if not row["decided"]]
    assert decided and min(decided) > max(others, default=0.0)
    promise = f"{len(decided)} of {len(rows)} rows decided; of those at most 50% are wrong (90% confidence)"
    assert promise in done.err


def test_tables_have_the_probability(user: CommandLine) -> None:
    assert run(user, "batch", "more.txt", "-o", "out.csv", *WANTED, *SAMPLING).code == 0
    with (user.home / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(0 < float(row["probability"]) < 1 and row["decided"] in ("True", "False") for row in rows)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--votes", "5", "--calibration", "sums"), ("made with other settings", "--force")),
        (("--votes", "4", "--calibration", "sums", "--template", "{text} ?"), ("made with another question",)),
        (("--calibration", "sums"), ("--calibration requires votes", "--votes")),
        (("--votes", "4", "--max-error", "0.1"), ("--max-error requires --calibration", "--calibrate NAME")),
        (("--votes", "4", "--calibration", "nums"), ("no calibration named 'nums'", "sums")),
        (("--votes", "4", "--calibration", "sums", "--max-error", "0.001"), ("can be promised",)),
    ],
)
def test_bad_input_is_one_line(user: CommandLine, words: tuple[str, ...], parts: tuple[str, ...]) -> None:
    assert_error(run(user, "batch", "more.txt", "-o", "out.jsonl", *words, *SAMPLING), 2, *parts)


def test_votes_need_samples(user: CommandLine) -> None:
    done = run(user, "eval", "sums.jsonl", "--calibrate", "sums", *SAMPLING)
    assert_error(done, 2, "--calibrate requires votes", "--samples K")


def test_runs_show_what_their_votes_can_promise(tmp_path: Path) -> None:
    user = CommandLine(tmp_path)
    rows = "".join(f'{{"question": "{number} - {number} + 7 =", "answer": "7"}}\n' for number in range(30))
    (tmp_path / "sevens.jsonl").write_text(rows)
    words = ("sevens.jsonl", "--samples", "2", "--grammar", str(fixed_reply_grammar("The answer is 7.", tmp_path)))
    for seed in ("1", "2"):
        done = run(user, "eval", *words, "--seed", seed, "--calibrate", "sevens", "-o", f"{seed}.jsonl", *SAMPLING)
        assert done.code == 0 and "wanted error" in done.out
    shown = run(user, "runs", "show", "1.jsonl", "--plot", "shares.png")
    assert shown.code == 0 and (tmp_path / "shares.png").stat().st_size > 20_000
    assert [line.split() for line in shown.out.splitlines()][-4:] == [
        ["1%", "none"],
        ["2%", "none"],
        ["5%", "none"],
        ["10%", "1.00"],
    ]
    assert run(user, "runs", "show", "1.jsonl", "--json").object["share_promised"]["0.1"] == 1.0
    compared = run(user, "runs", "compare", "1.jsonl", "2.jsonl")
    assert "decided at 5% error (90% confidence): none of the rows by 1" in " ".join(compared.out.split())
