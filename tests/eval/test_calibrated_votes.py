"""What the votes of a run can promise, as its report shows it."""

from pathlib import Path

from command_line import CommandLine, Finished, fixed_reply_grammar

SAMPLING = ("-m", "nano", "--temperature", "1.0")


def run(user: CommandLine, *words: str) -> Finished:
    return user.run(*words, directory=user.home)


def test_runs_show_what_their_votes_can_promise(tmp_path: Path) -> None:
    user = CommandLine(tmp_path)
    rows = "".join(f'{{"question": "{number} - {number} + 7 =", "answer": "7"}}\n' for number in range(30))
    (tmp_path / "sevens.jsonl").write_text(rows)
    words = ("sevens.jsonl", "--samples", "2", "--grammar", str(fixed_reply_grammar("The answer is 7.", tmp_path)))
    for seed in ("1", "2"):
        done = run(user, "eval", *words, "--seed", seed, "-o", f"{seed}.jsonl", *SAMPLING)
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
