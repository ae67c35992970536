"""The final answer that a person takes from a reply, and the rule that finds it."""

import time

import pytest
from hypothesis import given, strategies as st

from cerebrum_cli.answers.final import compare_answer, final_answer

CHOICES = ("oxygen", "carbon dioxide", "nitrogen", "argon")
QUESTION = "Which gas do plants take up?\nA) oxygen\nB) carbon dioxide\nC) nitrogen\nD) argon"

# What models write, the answer in it, and the rule by which it is found; of the questions, those that matter.
REPLIES = [
    ("", "The answer is 4.", "4", "lead-in"),
    ("", "**Answer:** 42 apples", "42 apples", "lead-in"),
    ("", "The answer is 9. A common wrong answer is 8.", "9", "lead-in"),
    ("", "The answer is <s>.", "<s>", "lead-in"),
    ("", "The final answer to the question is: Paris.", "Paris", "lead-in"),
    ("", "Final Answer\n\n73", "73", "lead-in"),
    ("", "Die richtige Antwort lautet: 17.", "17", "lead-in"),
    ("", "La bonne réponse est 17.", "17", "lead-in"),
    ("", "答案是 C。", "C", "lead-in"),
    ("How many more?", "Answer:\nThey sold 20 and 16. Therefore, the difference is 4.", "4", "number"),
    ("", "We get 3 + 4 = 7.\n#### 7", "7", "mark"),
    ("", "So $$x = \\boxed{\\frac{1}{2}}.$$ The rest is easy.", "\\frac{1}{2}", "box"),
    ("", "\\boxed{3}, \\boxed{5} and \\boxed{7}", "3, 5, 7", "box"),
    ("", '```json\n{"reasoning": "5 + 1", "answer": "$6"}\n```', "$6", "key"),
    ("", "I think <answer>18</answer>", "18", "tag"),
    ("", "5 + 3 is 8.\n\n**8**", "8", "bold line"),
    ("Which language did Bjarne Stroustrup create? Name only.", "C++", "C++", "line"),
    ("Extract the IP address. Reply with the address only.", "192.168.1.1", "192.168.1.1", "line"),
    ("Which vitamin is abundant in oranges? Two words.", "Vitamin C", "Vitamin C", "line"),
    ("What color is it?", "#ff8800", "#ff8800", "line"),
    ("What grade is it?", "B+", "B+", "line"),
    ("What is the password?", "hunter2", "hunter2", "line"),
    ("Extract the address.", "sales+eu@shop-demo.example", "sales+eu@shop-demo.example", "line"),
    ("Extract the URL.", "https://docs.example/a?id=7&x=1", "https://docs.example/a?id=7&x=1", "line"),
    ("Which version?", "2.14.0rc1", "2.14.0rc1", "line"),
    ("Give a pattern for digits. The pattern only.", "```regex\n\\d+\n```", "\\d+", "line"),
    ("What is the tag?", "[INST]", "[INST]", "line"),
    ("Which method initializes an object? Name only.", "__init__", "__init__", "line"),
    ("Which operator negates in C? Operator only.", "!", "!", "line"),
    ("Extract the status as JSON.", '{"status": "open"}', '{"status": "open"}', "line"),
    ("Is it open? As JSON.", '{"answer": true}', "true", "key"),
    ("", "The answer is: **C++**", "C++", "lead-in"),
    ("", "The answer is not 5.", "The answer is not 5.", "line"),
    ("What is 3 + 4?", "3 + 4 is 7.\n\n#### Explanation\n\n3 + 4 = 7", "7", "rest"),
    ("Which is larger, 9.11 or 9.9?", "The larger number is 9.9.", "9.9", "rest"),
    ("Which is larger, 9.11 or 9.9?", "9.11 is less than 9.9.", "9.11 is less than 9.9.", "line"),
    ("Which is faster, a car or a bike?", "A car is faster.", "A car", "rest"),
    ("How much is 20% of 50?", "20% of 50 is 10.", "10", "number"),
    ("How many hours are in 3 days?", "3 days have 72 hours.", "72", "number"),
    ("What is the capital of Australia?", "The capital of Australia is Canberra.", "Canberra", "rest"),
    ("Which city is the capital of France?", "Paris is the capital of France.", "Paris", "rest"),
    ("Is this review positive or negative?", "Label: positive", "positive", "rest"),
    ("Which is larger, 9.11 or 9.9?", "9.11 is larger than 9.9.", "9.11", "rest"),
    ("Who painted the Mona Lisa?", "The Mona Lisa was painted by Leonardo da Vinci.", "Leonardo da Vinci", "rest"),
    ("Who wrote Harry Potter?", "Harry Potter was written by J.K. Rowling.", "J.K. Rowling", "rest"),
    (
        "What does HTTP stand for?",
        "HTTP stands for Hypertext Transfer Protocol.",
        "Hypertext Transfer Protocol",
        "rest",
    ),
    ("What is 255 in hexadecimal?", "255 in hexadecimal is `FF`.", "FF", "marked"),
    ("Translate good morning.", 'Translates to "Guten Morgen" in German', "Guten Morgen", "marked"),
    ("Which keys copy?", "To copy, press:\n\n- `Ctrl + C`\n\nThat copies the text.", "Ctrl + C", "marked"),
    ("Simplify it.", "Combining like terms gives\n\n$$9a + 11$$", "9a + 11", "formula"),
    ("How many legs do 3 beetles have?", "A beetle has 6 legs, so 3 have 3 * 6 = 18 legs.", "18", "number"),
    ("How much does she earn?", "She makes 9 * 2 = $<<9*2=18>>18 every day.", "18", "number"),
    ("How many pages?", "So the number of pages increased from 120 to 150.", "150", "number"),
    ("How many liters?", "The tank takes 3.5 liters (about 0.92 gallons).", "3.5", "number"),
    ("How many?", "It is not 5 but 42.", "42", "number"),
    ("Is 7 prime?", "Yes, 7 is prime.", "yes", "first word"),
    ("Is the Earth flat? Answer yes or no.", "I looked it up. The answer is no.", "no", "lead-in"),
    ("Does it fit?", "It does not, so no.", "no", "last sentence"),
    (QUESTION, "B) carbon dioxide", "B", "first letter"),
    (QUESTION, "Plants use carbon dioxide.\n\nThe answer is B.", "B", "lead-in"),
    (QUESTION, "Plants take up carbon dioxide.", "B", "last sentence that names a choice"),
    (QUESTION, "A is wrong, since it is released. That leaves B.", "B", "last sentence that names a choice"),
    (
        "Which one? (a) Mars (b) Jupiter (c) Venus",
        "The largest planet is Jupiter.",
        "B",
        "last sentence that names a choice",
    ),
]
# What has no final answer: refusals, several, ranges, an unfinished thought.
NONE = [
    ("", ""),
    ("", " \n\n"),
    ("How many?", "There are 3 or 4."),
    ("How many?", "At least 9 sheep are left."),
    ("How many?", "It cannot be determined whether there are 12."),
    ("How many?", "See page 12."),
    ("What is the result?", '{"answer": "Cannot be determined with the given information"}'),
    ("Write a poem.", "Leaves fall\n\nThe pond is old"),
    (QUESTION, "I would say B or C."),
    (QUESTION, "None of the above."),
]


@pytest.mark.parametrize(("question", "reply", "answer", "rule"), REPLIES, ids=[row[1][:50] for row in REPLIES])
def test_final_answer_is_found_by_its_rule(question: str, reply: str, answer: str, rule: str) -> None:
    assert final_answer(question, reply) == (answer, rule)


@pytest.mark.parametrize(("question", "reply"), NONE)
def test_reply_without_a_final_answer(question: str, reply: str) -> None:
    assert final_answer(question, reply) is None


def test_truncated_reply_has_only_what_it_states() -> None:
    assert final_answer("How many?", "So there are 12", is_complete=False) is None
    assert final_answer("How many?", "The answer is 12. Let me", is_complete=False) == ("12", "lead-in")


@pytest.mark.parametrize(
    ("question", "reply", "reference", "is_correct"),
    [
        ("Who was it?", "It was Armstrong.", "Armstrong", True),
        ("Which city?", "It is not Paris but Rome.", "Rome", True),
        ("Which city?", "It is definitely not Paris.", "Paris", False),
        ("Which city?", "It was never Paris.", "Paris", False),
        ("Which city?", "Paris is wrong.", "Paris", False),
        ("Which city?", "Paris or Rome, I think.", "Rome", False),
        ("Where was it?", "Answer: Marseille", "Mars", False),
        ("Which planet has rings?", "The planet with rings is Saturn.", "Saturn", True),
        ("What is x?", "So $x = 3\\sqrt{2}$.", "3\\sqrt{2}", True),
        ("How far?", "John is 135 miles from home at the end of those 4 hours.", "135", True),
        ("How far?", "John is 135 miles from home at the end of those 4 hours.", "4", False),
        ("Is it so?", "Unfortunately, that is not possible.", "no", True),
        ("What is it?", "The probability is 35%.", "0.35", True),
        ("What is it?", "The probability is 0.35%.", "0.35", False),
    ],
)
def test_answer_is_compared_with_a_reference(question: str, reply: str, reference: str, is_correct: bool) -> None:
    assert compare_answer(reply, True, reference, (), question).is_correct == is_correct


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("The answer is C (nitrogen), not B.", "C"),
        ("**B.** carbon dioxide", "B"),
        ("\\boxed{\\text{(B) carbon dioxide}}", "B"),
        ("I initially thought A, but the answer is B.", "B"),
        ("Not A, not C, but D.", "D"),
        ("Option A is wrong. Option B is right. Option C is wrong.", "B"),
        ('Action: Answer("D")\n\nExplanation:\nOptions A, B, and C are not supported.', "D"),
        ("By elimination, only D remains.", "D"),
        ("ANSWER: AB", None),
        ("Answer: None of the above", None),
        ("helium", None),
    ],
)
def test_choice_is_named_last_and_not_denied(reply: str, letter: str | None) -> None:
    answer = compare_answer(reply, True, "B", CHOICES).answer
    assert (answer and answer.text) == letter


@given(st.text(max_size=200), st.sampled_from(("", "How many?", "Is it so?", QUESTION)))
def test_any_text_has_an_answer_or_none(text: str, question: str) -> None:
    answer = final_answer(question, text)
    assert answer is None or answer.text == answer.text.strip() != ""


@given(st.text(max_size=80), st.integers(min_value=0))
def test_stated_number_is_read_behind_any_text(before: str, number: int) -> None:
    for statement in (f"\n#### {number}", f"\nSo $\\boxed{{{number}}}$."):
        found = final_answer("", before + statement, kind="number")
        assert found and found.text == str(number)


@pytest.mark.parametrize(
    "part", ["The answer is 5. ", "\\boxed{", "{", "(a) b ", "\n", "? ", '"answer": ', "= 1 ", "a,", "#"]
)
def test_long_reply_is_read_in_time(part: str) -> None:
    text = part * (1_000_000 // len(part))
    for question in ("How many?", "What is it?", "Is it so?", QUESTION):
        started = time.process_time()
        final_answer(question, text)
        assert time.process_time() - started < 2
