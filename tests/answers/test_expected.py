"""What a question asks for, and its answers of that kind; `\\n` in a list of questions is a line break."""

import pytest

from cerebrum_cli.answers.expected import Expected, expected_answer
from cerebrum_cli.answers.final import read_answers

YES_NO = """
Is 7 a prime number?
is 7 a prime number
Is 7 a prime number or not? Think step by step.
Answer yes or no: Is 91 prime?
Question: Do cats fly?\\nAnswer:
Tom has 5 apples and gives 3 away. Does he have more than 1 left?
If x = 3 and y = 4, is x + y prime?
Is the following statement true? "All squares are rectangles."
True or false: 51 is prime.
Whales are fish. Answer with True or False.
7 is a prime number, yes or no?
Ist 91 eine Primzahl? Denke Schritt für Schritt.
Le nombre 91 est-il premier ?
¿Es 91 primo? Responde sí o no.
7 è un numero primo? Rispondi sì o no.
7 é um número primo? Responda sim ou não.
Является ли 7 простым числом?
地球是平的吗？请回答是或否。
7は素数ですか
91은 소수인가요?
"""
ANY = """
Is it 5 or 7?
Can you tell me how many legs a spider has?
Could you compute 2 + 3?
Do you know what 7 * 8 is?
Are you sure?
Is it possible to compute 3 + 4 without a calculator? Do it.
Is there a number n such that n^2 = 49? Find it
Is 91 prime? If not, what are its factors?
Do the following: add 3 and 4.
What is 3 + 4? Is it prime?
Is 7 prime? Is 9 prime?
Will buys 3 apples and May buys 4. How many do they have?
Translate into German: Is 7 a prime number?
Write a function is_prime. Does it work for 2?
A test has 10 true or false questions. How many ways are there to answer?
Tell me a yes or no question.
Is 5 + 7 equal to?
Rate the following answer from 1 to 10. Is the answer helpful?
Is the answer good? Reply with 1 or 0.
Ist es 5 oder 7?
Was kostet das Brot?
Combien est-ce que 3 + 4 font ?
你知道7乘8等于多少吗？
答えは5ですか、それとも7ですか？
사과는 몇 개인가요?
Compute:\\n(A) 2 + 3\\n(B) 4 * 5\\n(C) 7 - 1
There are two boxes:\\nA) 5 apples\\nB) 3 pears\\nHow many fruits are there?
How much do these weigh in total?\\nA) apples: 3 kg\\nB) pears: 4 kg
Which of these are prime? Select all that apply.\\nA) 2\\nB) 3\\nC) 4
A. Smith has 5 apples. B. Jones has 3. How many have they together?
"""
CHOICES = """
Which planet is largest?\\nA) Mars\\nB) Venus
Is 7 prime?\\n- **A.** Mars\\n- **B.** Venus\\n\\nAnswer with the letter of the correct option.
Which planet is largest? (A) Mars (B) Venus
Choose one. The largest planet is\\na) Mars\\nb) Venus\\nAnswer:
"""


@pytest.mark.parametrize(
    ("lines", "expected"),
    [(YES_NO, Expected("yes or no")), (ANY, Expected()), (CHOICES, Expected("choice", ("Mars", "Venus")))],
)
def test_question_says_what_answers_it_where_that_is_certain(lines: str, expected: Expected) -> None:
    texts = [line.replace("\\n", "\n") for line in lines.strip().splitlines()]
    assert [text for text in texts if expected_answer(text) != expected] == []


@pytest.mark.parametrize(
    ("text", "is_complete", "answer"),
    [
        ("9 = 3 * 3.\nNo, 9 is not a prime number.", True, "no"),
        ("It has the divisors 1 and 7.\n\n**Yes**", True, "yes"),
        ("The answer is True.", True, "yes"),
        ("Ja, 7 ist eine Primzahl.", True, "yes"),
        ("It has 2 divisors.", True, None),
        ("Yes, since 7 has", False, "yes"),
        ("Is it even? No. Then it", False, None),
    ],
)
def test_question_of_yes_and_no_is_never_answered_by_a_number(text: str, is_complete: bool, answer: str | None) -> None:
    assert read_answers(text, is_complete, Expected("yes or no")) == (answer, answer)


@pytest.mark.parametrize(
    ("text", "answers"),
    [("The answer is (B), not A.", ("B", "B")), ("Venus", ("B", "B")), ("It is 3 or 4.", (None, None))],
)
def test_question_with_choices_is_answered_by_a_letter(text: str, answers: tuple[str | None, str | None]) -> None:
    assert read_answers(text, True, Expected("choice", ("Mars", "Venus"))) == answers
