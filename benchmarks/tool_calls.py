"""Function calls by a model: python -m benchmarks.tool_calls MODEL...

24 questions that need one of six functions, and 30 that need none. A call counts if it has the right name and
arguments. 12 questions whose answer is in what a function returns, and 12 that need none of these functions: an answer
is right if its text has a value of the result, or a conclusion from it. 10 calculations without and with `python`. For
GSM8K, use `cerebrum eval`.
"""

from __future__ import annotations

import re
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
    ("How many euros are 250 US dollars?", "convert_currency", {"amount": 250.0, "source": "USD", "target": "EUR"}),
    ("Convert 90 GBP to JPY.", "convert_currency", {"amount": 90.0, "source": "GBP", "target": "JPY"}),
    ("I have 1000 Swiss francs (CHF). How much is that in euros?", "convert_currency", {"amount": 1000.0}),
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


def order_status(number: str) -> dict[str, object]:
    """Status of a customer's order."""
    return {"order": number, "status": "shipped", "parcel": {"carrier": "Postnord", "arrives": "2027-03-18"}}


def population(town: str) -> int:
    """Number of people who live in a town."""
    return {"Brevik": 2714}.get(town, 48_213)


def distance(start: str, end: str) -> str:
    """Distance by road between two towns."""
    return f"{start} - {end}: 417 km, 5 h 10 min by car"


def exchange_rate(source: str, target: str) -> float:  # noqa: ARG001
    """How much one unit of a currency, such as CHF, is worth in another."""
    return {"SEK": 11.37}.get(target, 0.8846)


def local_time(city: str) -> dict[str, str]:
    """Current local time in a city, and its time zone."""
    return {"city": city, "time": "03:47", "zone": "UTC+11"}


def opening_hours(place: str, day: str) -> str:
    """Opening hours of a shop, museum or office on a day of the week."""
    return f"{place}, {day}: 10:30-18:45"


def stock_of(article: str) -> list[dict[str, object]]:  # noqa: ARG001
    """How many pieces of an article are in each warehouse."""
    return [{"warehouse": "Lyon", "pieces": 0}, {"warehouse": "Gdansk", "pieces": 36}]


def phone_number(person: str) -> str:  # noqa: ARG001
    """Telephone number of a person in the address book."""
    return "+44 20 7946 0857"


def calculate(expression: str) -> int:
    """Value of an arithmetic expression."""
    return int(eval(expression, {"__builtins__": {}}))


def forecast(city: str, day: str = "today") -> dict[str, object]:
    """Weather forecast for a city."""
    return {"city": city, "day": day, "sky": "heavy rain", "temperature_c": 9, "rain_probability": 0.95}


def flights(start: str, end: str) -> list[dict[str, object]]:  # noqa: ARG001
    """Flights between two cities, with their price."""
    return [
        {"flight": "KX 118", "departs": "07:25", "price_eur": 214},
        {"flight": "KX 340", "departs": "13:05", "price_eur": 96},
        {"flight": "ZP 77", "departs": "19:40", "price_eur": 158},
    ]


def server_status(name: str) -> dict[str, object]:
    """State of a server: its load, memory and disks."""
    disks = [{"mount": "/", "used_percent": 41}, {"mount": "/var", "used_percent": 93}]
    return {"server": name, "load": 0.7, "memory": {"total_gb": 64, "free_gb": 11.5}, "disks": disks}


LOOKUPS: list[Callable[..., object]] = [
    *(order_status, population, distance, exchange_rate, local_time, opening_hours),
    *(stock_of, phone_number, calculate, forecast, flights, server_status),
]
ANSWERS: list[tuple[str, str, dict[str, object], str]] = [  # the last is a regular expression
    (
        "When does my order 80417 arrive?",
        "order_status",
        {"number": "80417"},
        r"2027-03-18|18(th)?( of)? March|March 18",
    ),
    ("How many people live in Brevik?", "population", {"town": "Brevik"}, "2,?714"),
    ("How far is it from Lund to Falun by road?", "distance", {"start": "Lund", "end": "Falun"}, "417"),
    ("How many Swedish kronor (SEK) do I get for one euro (EUR)?", "exchange_rate", {"target": "SEK"}, "11[.]37"),
    ("What time is it in Noumea now?", "local_time", {"city": "Noumea"}, "0?3:47"),
    ("Until when is the Maritime Museum open on Friday?", "opening_hours", {"day": "Friday"}, "18:45|6:45"),
    ("Which warehouse has the article T-900?", "stock_of", {"article": "T-900"}, "Gdansk"),
    ("What is Ms. Okafor's telephone number?", "phone_number", {}, "7946 ?0857"),
    ("Please calculate 4871 * 236.", "calculate", {}, "1,?149,?556"),
    ("Do I need an umbrella in Bergen today?", "forecast", {"city": "Bergen"}, "(?i)yes|need an umbrella|rain"),
    ("Which is the cheapest flight from Vienna to Porto?", "flights", {"start": "Vienna", "end": "Porto"}, "KX 340"),
    ("Which disk of the server atlas is nearly full?", "server_status", {"name": "atlas"}, "/var"),
]
NO_LOOKUP = """
Good morning!
What is the capital of Portugal?
Write a limerick about a cat.
Translate "Where is the station?" into French.
What is the opposite of "generous"?
Who discovered penicillin?
Correct this sentence: "He go to school yesterday."
Explain what an exchange rate is.
What does CPU stand for?
Name three vegetables.
What is a good name for a bakery?
Thanks, that is all for today.
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
    given = {key: as_text(value) for key, value in call.arguments.items()}
    return call.name == name and all(given.get(key) == as_text(value) for key, value in arguments.items())


def as_text(value: object) -> str:
    """A value that may be spelled in another way: 250 and 250.0, USD and usd."""
    return str(value).casefold().removesuffix(".0")


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


def answer(model: Model) -> str:
    called = right = needless = failed = 0
    for question, name, arguments, expected in ANSWERS:
        reply = model.reply(question, tools=LOOKUPS).wait()
        if not (reply.calls and is_right(reply.calls[0], name, arguments)):
            print(f"  {question} -> {reply.calls or reply.text[:300]!r}", flush=True)
            continue
        called += 1
        is_answered = bool(re.search(expected, reply.message.content))
        right += is_answered
        if not is_answered:
            print(f"  {question} -> {reply.calls} {reply.text[:300]!r}", flush=True)
    for question in NO_LOOKUP:
        calls = model.reply(question, tools=LOOKUPS, max_tokens=100).wait().calls
        needless += any(map(has_run, calls))
        failed += bool(calls) and not any(map(has_run, calls))
        if calls:
            print(f"  {question} -> {calls[0]}: {calls[0].result}", flush=True)
    return (
        f"{called} of {len(ANSWERS)} lookups called right, {right} of these answered right; "
        f"needless calls for {needless} of {len(NO_LOOKUP)} questions, and for {failed} calls that could not be run"
    )


def has_run(call: ToolCall) -> bool:
    """Whether a function was run: those that do not exist, or have invalid arguments, are not."""
    return not call.result.startswith(("there is no function", "invalid arguments"))


def solve(model: Model, tools: Sequence[str]) -> str:
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
            print(f"{name}: {answer(model)}", flush=True)
            print(f"{name}: {solve(model, [])}; {solve(model, ['python'])}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
