"""Words that every error shares."""

from __future__ import annotations

import pytest

from clpdd.errors import first_few, first_line, one_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one line"), "one line"),
        (RuntimeError("\n  first words \nmore"), "first words"),
        (OSError(2, "No such file or directory"), "[Errno 2] No such file or directory"),
        (AssertionError(), "AssertionError"),
        (MemoryError("  \n "), "MemoryError"),
    ],
)
def test_the_first_line_of_an_error_is_never_empty(error: Exception, line: str) -> None:
    assert first_line(error) == line


def test_names_beyond_the_first_few_are_hinted_at() -> None:
    assert (first_few(["a", "b", "c"]), first_few("abcd"), first_few(["x", "y"], 1)) == (
        "a, b, c",
        "a, b, c, ...",
        "x, ...",
    )
    assert first_few([]) == ""


def test_all_that_an_error_says_fits_on_one_line() -> None:
    assert (
        one_line(RuntimeError("Error(s) in loading:\n\tsize mismatch for fc."))
        == "Error(s) in loading: size mismatch for fc"
    )
    assert one_line(ValueError("x" * 20), most=10) == "xxxxxxx"
    assert one_line(KeyError()) == "KeyError"
