"""Final answers are extracted from chains of thought, in linear time."""

import json
import time
from fractions import Fraction
from pathlib import Path

import pytest
from final_answers import final_answer
from hypothesis import assume, given
from hypothesis import strategies as st

from cerebrum_cli.answers.canonical import equals_reference
from cerebrum_cli.answers.own_text import _NEXT_QUESTION

CASES: list[dict[str, str | None]] = json.loads(
    (Path(__file__).parents[1] / "data" / "answers.json").read_text(encoding="utf-8")
)

MARKUP = (
    *("The answer is ", "answer", "Answer:", "answer to the ", "\\boxed{", "\\boxed{}", "\\fbox ", "#### ", "\n"),
    *("\\frac{", "\\frac12", "\\text{", "\\,", "\\\\", "{", "}", "(", ")", "[", "$", "**", "`", '"', "'", "<<", ">>"),
    *(".", "!", "...", " ", ",", "1,234", "1", "-", "e", "/", "%", "a.b. ", "Dr. ", "not ", ", since ", "(A) ", "= "),
    *("= 1", "=\n", "≈", "since x = ", "so ", "which is 1 ", "1 or ", "3:15 p.m.", "1 000 ", "10^", "? ", ". A", "! A"),
    *("is two ", "two ", "is only "),
)
prose = st.text(max_size=80)
marked_up = st.lists(st.sampled_from(MARKUP) | st.text(max_size=3), max_size=25).map("".join)
integers = st.integers().map(str)
decimals = st.decimals(allow_nan=False, allow_infinity=False, places=4).map(lambda number: f"{number:f}")
fractions = st.builds(lambda over, under: f"{over}/{under}", st.integers(), st.integers(min_value=1))
numbers = integers | decimals | fractions


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["name"]))
def test_final_answer_of_a_chain_of_thought(case: dict[str, str | None]) -> None:
    assert final_answer(case["text"] or "") == case["answer"]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        *(('"What is 2 + 3?" is "The answer is 5."', "5"), ("He said 'the answer is 5.'", "5")),
        *(('So "The answer is yes".', "yes"), ("“The answer is Paris.”", "Paris")),
        *(("The answer is the boys'", "the boys'"), ('The answer is "Paris".', "Paris")),
    ],
)
def test_final_answer_leaves_out_the_quotes_around_its_statement(text: str, answer: str) -> None:
    assert final_answer(text) == answer


@given(prose | marked_up, numbers)
def test_final_answer_is_the_last_stated_number(before: str, number: str) -> None:
    assume("think>" not in before)
    assert final_answer(f"{before} The answer is {number}.") == number
    assert final_answer(f"{before} The answer is ${number}$. Let me check.") == number
    assert final_answer(f"{before} $\\boxed{{{number}}}$.") == number
    assert final_answer(f"{before}\n#### {number}") == number
    answer = final_answer(before)
    assert answer is None or answer == answer.strip() != ""
    # a truncated statement is ignored
    assert final_answer(f"{before} The answer is {number}. The answer is") == number
    assert final_answer(f"{before} The answer is {number}. So $\\boxed{{") == number


@given(st.integers(min_value=1000), st.fractions())
def test_final_answer_is_read_without_separators_and_latex(number: int, fraction: Fraction) -> None:
    assert final_answer(f"The answer is {number:,}.") == str(number)
    written = f"\\frac{{{fraction.numerator}}}{{{fraction.denominator}}}"
    assert Fraction(final_answer(f"The answer is ${written}$.") or "") == fraction


def seconds(text: str) -> float:
    """CPU time to find the final answer."""
    start = time.process_time()
    final_answer(text)
    return time.process_time() - start


@pytest.mark.slow
@pytest.mark.parametrize("opening", ["", "The answer is ", "\\boxed{"])
def test_final_answer_takes_linear_time(opening: str) -> None:
    for unit in (*MARKUP, "\\frac{1}{", "\\boxed{\\boxed{", "\\frac{\\frac{1}{2}}{", "\n#### ", '."'):
        # a quadratic pattern takes 0.6 to 20 for 10,000 characters, and a quarter of that for half; others 0.2 and 0.1
        assert seconds(opening + unit * (5_000 // len(unit))) < 0.1 or (
            seconds(opening + unit * (10_000 // len(unit))) < 0.5
        ), unit


VALUES = (
    *(
        "73",
        "-4",
        "3.5",
        "4/5",
        "x^2 + 1",
        "2π",
        "[2, 5)",
        "{1, 2}",
        "51_8",
        "3 + 4i",
        "(1, -2)",
        "x > 5",
        "12\\pi",
        "5!",
    ),
    *("2:30 pm", "\\frac{3}{4}", "\\sqrt{2}", "1, 2, 3", "x = 2 or x = -2", "25%"),
)
OPENINGS = ("", "**", "_", "✅ ", "→ ", "« ", "<b>", "exactly ", "actually ", "indeed, ", "🎉 ", '"')
ENDINGS = (
    "",
    ".",
    "**",
    " ✅",
    " 🎉",
    "[^1]",
    "</s>",
    "<|im_end|>",
    " :)",
    "。",
    "_",
    "</b>",
    " [✓]",
    '"',
    " (as required)",
)
LABELS = (
    "The answer is ",
    "**Answer:** ",
    "Final answer: ",
    "Antwort: ",
    "Réponse : ",
    "Respuesta: ",
    "答案是",
    "答え:",
)
REMARKS = (
    *(
        "",
        "\n\nLet me know if you have questions 2 or 3!",
        "\n\nI hope this helps.",
        "\nWould you like 2 more examples?",
    ),
    *(
        "\n\n(Difficulty: 3/5)",
        "\n\nNote: I used 2 steps.",
        "\n\nÀ bientôt !",
        "\n希望这对你有帮助！",
        "\nThe answer is correct.",
    ),
)


@given(*map(st.sampled_from, (LABELS, OPENINGS, VALUES, ENDINGS, REMARKS)))
def test_what_stands_around_a_value_changes_nothing(
    label: str, opening: str, value: str, ending: str, rest: str
) -> None:
    reply = f"There are 17 of them.\n\n{label}{opening}{value}{ending}{rest}"
    assert equals_reference(final_answer(reply), value), (reply, final_answer(reply))


@pytest.mark.parametrize("turn", ["Question: And pears?", "\nHuman: 3+3?\nAI: 6", "<|im_end|>\n<|im_start|>user\nAnd"])
def test_reply_before_a_turn_that_the_model_made_up_is_complete(turn: str) -> None:
    assert final_answer(f"She has 5 - 2 = 3 apples left.\n{turn}", is_complete=False) == "3"
    assert final_answer("She has 5 - 2 = 3 apples left.\n", is_complete=False) is None


@given(st.lists(st.sampled_from(VALUES) | prose), *map(st.sampled_from, (LABELS, VALUES)))
def test_text_before_the_last_2000_characters_changes_nothing(before: list[str], label: str, value: str) -> None:
    reply = "We count them one after the other. " * 60 + f"\n{label}{value}"
    text = " is ".join(before)
    assume("think>" not in text and not _NEXT_QUESTION.search(text))
    assert final_answer(f"{text}\n\n{reply}") == final_answer(reply)


def test_final_answer_of_a_truncated_reply_is_no_prose() -> None:
    text = "This is not the answer we need.\nAnswer: Let us correct the calculation and solve the equation again"
    assert final_answer(text, is_complete=False) is None
    assert final_answer(f"The answer is 12.\n{text}", is_complete=False) == "12"
