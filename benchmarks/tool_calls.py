"""Function calls by a model: python benchmarks/tool_calls.py MODEL...

24 questions that need one of six functions, and 30 that need none. A call counts if it has the right name and
arguments. 10 calculations without and with `python`. For GSM8K, use `cerebrum eval`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter

from cerebrum_cli import open_model
from cerebrum_cli.core.tools import ToolCall
from cerebrum_cli.replies.interface import Model


def weather(city: str, days: int = 1) -> str:
    """Weather forecast for a city."""
    return f"{city}: rain, 4 °C, for {days} day(s)"


def convert_currency(amount: float, source: str, target: str) -> str:
    """Convert an amount of money from one currency to another, both as ISO codes such as EUR."""
    return f"{amount * 1.5:.2f} {target} (from {source})"


def set_timer(minutes: int) -> str:
    """Start a timer that rings after a number of minutes."""
    return f"timer set: {minutes} min"


def add_event(title: str, date: str) -> str:
    """Add an event to the calendar, with its date as YYYY-MM-DD."""
    return f"added: {title} on {date}"


def send_mail(to: str, subject: str, text: str = "") -> str:
    """Send an e-mail to a person."""
    return f"sent to {to}: {subject} ({len(text)} characters)"


def stock_price(symbol: str) -> str:
    """Current price of a stock by its ticker symbol."""
    return f"{symbol}: 123.45 USD"


TOOLS: list[Callable[..., str]] = [weather, convert_currency, set_timer, add_event, send_mail, stock_price]
CALLS: list[tuple[str, str, dict[str, object]]] = [
    ("Do I need a coat in Oslo today?", "weather", {"city": "Oslo"}),
    ("What will the weather be like in Nairobi over the next 3 days?", "weather", {"city": "Nairobi", "days": 3}),
    ("Is it raining in Lima right now?", "weather", {"city": "Lima"}),
    ("Give me a five-day forecast for Kyoto.", "weather", {"city": "Kyoto", "days": 5}),
    ("How many euros are 250 US dollars?", "convert_currency", {"amount": 250, "source": "USD", "target": "EUR"}),
    ("Convert 90 GBP to JPY.", "convert_currency", {"amount": 90, "source": "GBP", "target": "JPY"}),
    ("I have 1000 Swiss francs (CHF). How much is that in euros?", "convert_currency", {"amount": 1000}),
    ("What are 12.5 EUR in US dollars?", "convert_currency", {"amount": 12.5, "target": "USD"}),
    ("Set a timer for 12 minutes.", "set_timer", {"minutes": 12}),
    ("Wake me in an hour.", "set_timer", {"minutes": 60}),
    ("The eggs need 7 minutes, please remind me.", "set_timer", {"minutes": 7}),
    ("Start a 25-minute timer.", "set_timer", {"minutes": 25}),
    ("Put the dentist on my calendar for 2027-03-04.", "add_event", {"date": "2027-03-04"}),
    ("Add Anna's birthday on 2027-05-17 to the calendar.", "add_event", {"date": "2027-05-17"}),
    ("Schedule the team lunch for 2027-01-22.", "add_event", {"date": "2027-01-22"}),
    ("Please note in my calendar: tax deadline, 2027-07-31.", "add_event", {"date": "2027-07-31"}),
    ("Mail bob@example.com that I am late, subject Late.", "send_mail", {"to": "bob@example.com"}),
    ("Send an e-mail to eve@example.org with the subject Lunch.", "send_mail", {"to": "eve@example.org"}),
    ("Write to max@example.net: the report is ready. Subject: Report.", "send_mail", {"to": "max@example.net"}),
    ("E-mail ann@example.com, subject Thanks, text Thank you for the help.", "send_mail", {"to": "ann@example.com"}),
    ("What is the price of the stock AAPL?", "stock_price", {"symbol": "AAPL"}),
    ("How much does one share of MSFT cost at the moment?", "stock_price", {"symbol": "MSFT"}),
    ("Look up the current price of TSLA.", "stock_price", {"symbol": "TSLA"}),
    ("Tell me NVDA's stock price.", "stock_price", {"symbol": "NVDA"}),
]
RESTRAINT = """
Say hello.
What is the capital of France?
Write a haiku about autumn.
Explain recursion in one sentence.
What is 2 + 2?
Who wrote Hamlet?
Translate "good morning" into Spanish.
What is photosynthesis?
Give me three synonyms for happy.
How do I boil an egg?
What is the largest planet of the solar system?
Write a Python function that reverses a string.
Why is the sky blue?
What does HTTP stand for?
Name two prime numbers above 10.
Summarize the story of Cinderella in two sentences.
What is the difference between a list and a tuple in Python?
Who painted the Mona Lisa?
Is a tomato a fruit?
What is the chemical symbol of gold?
How many legs does a spider have?
Write a polite sentence that declines an invitation.
What is the past tense of "go"?
Explain what a stock exchange is.
What is a currency?
How does a microwave oven heat food?
What is the meaning of "carpe diem"?
List the seasons of the year.
What do bees make?
Thank you, that was helpful!
""".strip().splitlines()


CALCULATIONS = {
    "What is the 50th prime?": "229",
    "What is 17 to the power of 13?": "9904578032905937",
    "How many days are there between 2024-02-10 and 2025-03-01?": "385",
    "What is the 30th Fibonacci number?": "832040",
    "What is the sum of the digits of 2**100?": "115",
    "A shop sells 37 shirts at 12.95 and 18 hats at 7.49. What is the total?": "613.97",
    "What is 123456789 times 987654321?": "121932631112635269",
    "How many times does the letter r occur in strawberry?": "3",
    "What weekday was 2000-01-01?": "Saturday",
    "What is the square root of 7 to 10 decimals?": "2.6457513111",
}


def is_right(call: ToolCall, name: str, arguments: Mapping[str, object]) -> bool:
    """Whether a call has this name, and these arguments among others."""
    given = {key: str(value).casefold() for key, value in call.arguments.items()}
    return call.name == name and all(given.get(key) == str(value).casefold() for key, value in arguments.items())


def call(model: Model) -> str:
    right = answered = 0
    for question, name, arguments in CALLS:
        reply = model.reply(question, tools=TOOLS).wait()
        first = reply.calls[0] if reply.calls else None
        if first is None or not is_right(first, name, arguments):
            print(f"  {question} -> {first or reply.text[:300]!r}", flush=True)
            continue
        right += 1
        answered += bool(reply.message.content.strip())
    return f"{right} of {len(CALLS)} calls right, {answered} answered"


def refrain(model: Model) -> str:
    restrained = 0
    for question in RESTRAINT:
        calls = model.reply(question, tools=TOOLS, max_tokens=100).wait().calls
        restrained += not calls
        if calls:
            print(f"  {question} -> {calls[0]}", flush=True)
    return f"no call for {restrained} of {len(RESTRAINT)} questions that need none"


def calculate(model: Model, tools: Sequence[str]) -> str:
    right = 0
    for question, answer in CALCULATIONS.items():
        right += answer in model.reply(question, tools=tools).wait().text.replace(",", "")
    return f"{right} of {len(CALCULATIONS)} calculations right with {list(tools)}"


def main(models: Sequence[str]) -> None:
    for name in models:
        with open_model(name, ctx=4096, temperature=0.0, max_tokens=300) as model:
            start = perf_counter()
            print(f"{name}: {call(model)}; {(perf_counter() - start) / len(CALLS):.1f} s a question")
            print(f"{name}: {refrain(model)}")
            print(f"{name}: {calculate(model, [])}; {calculate(model, ['python'])}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
