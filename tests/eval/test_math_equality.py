"""Math-Verify widens the equality of math: it adds correct answers, and what it cannot decide is not equal."""

import time
from collections.abc import Iterator
from threading import Thread

import pytest

from cerebrum_cli.core.errors import CerebrumError
from cerebrum_cli.eval import math_verify as math_verify_module
from cerebrum_cli.eval.math_verify import MathVerify, math_verify_version
from cerebrum_cli.eval.scorers import Written, opened_scorer

needs_math_verify = pytest.mark.skipif(math_verify_version() is None, reason="needs Math-Verify")


@pytest.fixture
def math_verify(monkeypatch: pytest.MonkeyPatch) -> Iterator[MathVerify]:
    monkeypatch.setattr(math_verify_module, "TIMEOUT_S", 20.0)
    verifier = MathVerify()
    yield verifier
    verifier.close()


@needs_math_verify
@pytest.mark.slow
def test_math_verify_accepts_other_forms_but_no_other_values(math_verify: MathVerify) -> None:
    pairs = [
        *(("1+√19, 1-√19", r"1 \pm \sqrt{19}"), (r"x = 1 - \sqrt{19} or x = 1 + \sqrt{19}", r"1 \pm \sqrt{19}")),
        *(("1024", "2^{10}"), ("-2, 1", "1,-2"), ("x = -2 or x = 1", "1,-2"), (r"1/\sqrt{2}", r"\frac{\sqrt{2}}{2}")),
        *(("(x-3)(5x+2)", "(5x+2)(x-3)"), ("120", "5!"), (r"2 \le x < 5", "[2,5)"), ("2, -2", r"\pm 2")),
        (r"\begin{pmatrix} 1/2 \\ 1 \end{pmatrix}", r"\frac{1}{2}\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    ]
    assert [pair for pair in pairs if not math_verify.is_equal(*pair)] == []
    for answer, reference in pairs[:2]:
        with opened_scorer("math") as scorer:
            [score] = scorer([Written(rf"\boxed{{{answer}}}", True, "?", reference)])
            assert score.is_correct
    others = [
        *(("52", "52_8"), ("52_9", "52_8"), ("20 loss", "20"), ("1025", "2^{10}"), ("(2, 1)", "(1, 2)")),
        *(("1, 3", "1, 2"), ("[0, 1]", "[0, 1)"), (r"\frac{", "1"), ("", "0"), ("x" * 400, "x" * 400 + "+0")),
    ]
    assert [pair for pair in others if math_verify.is_equal(*pair)] == []


@needs_math_verify
@pytest.mark.slow
def test_math_verify_is_stopped_when_it_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_verify_module, "TIMEOUT_S", 1.0)
    math_verify, found = MathVerify(), list[object]()

    def compare() -> None:  # signals, as Math-Verify's own limits, reach the main thread only
        start = time.monotonic()
        found.append(math_verify.is_equal("9^{9^{9^{9}}}", "3"))
        found.append(math_verify.is_equal("2^{10}", "1024"))
        found.append(time.monotonic() - start < 30)

    thread = Thread(target=compare)
    thread.start()
    thread.join()
    math_verify.close()
    assert found == [False, True, True]


def test_math_verify_that_cannot_be_imported_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_verify_module, "__name__", "no.such.module")
    math_verify = MathVerify()
    with pytest.raises(CerebrumError, match="Math-Verify cannot start") as error:
        math_verify.is_equal("2^{10}", "1024")
    assert error.value.hint.startswith("reinstall it: ")
    math_verify.close()
