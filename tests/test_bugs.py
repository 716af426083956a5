"""Every plan that ever broke a promise, run again: the first tests of all, as they are the likeliest to fail."""

from pathlib import Path

import pytest

from rqlab.exploration import hunting
from rqlab.exploration.bugs import read

BUGS = sorted((Path(__file__).parent.parent / "fixtures" / "bugs").glob("*.json"))


@pytest.mark.parametrize("file", BUGS, ids=lambda file: file.stem)
def test_a_plan_that_broke_a_promise_breaks_it_no_more(file: Path) -> None:
    row = hunting.run_bug(hunting.packed({}), read(file))

    assert row.ok, f"{row.says}\nreplay: {row.replay}"


@pytest.mark.parametrize("file", BUGS, ids=lambda file: file.stem)
def test_a_kept_plan_says_what_was_wrong_and_has_its_own_name(file: Path) -> None:
    bug = read(file)

    assert bug.why, "what was wrong, and what cured it"
    assert file.stem == bug.name


def test_there_are_kept_plans() -> None:
    assert BUGS
