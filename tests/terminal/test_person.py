"""What a test says that waits in vain for the program of a `Person`."""

import pytest
from person import OpenTerminal


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "code"), [("exit 3", 3), ("kill -9 $$", 137)])
def test_person_shows_the_screen_of_a_program_that_ends(open_terminal: OpenTerminal, ending: str, code: int) -> None:
    person = open_terminal("sh", "-c", f"echo no luck; echo on line 2; {ending}")
    with pytest.raises(AssertionError) as failure:
        person.wait_for("luck at last")
    assert str(failure.value).splitlines() == [
        f"the program ended with exit code {code} before it showed 'luck at last'; its screen:",
        "no luck",
        "on line 2",
    ]
