"""What ranks compare: the first difference, how it is shown, and whose error is stated."""

from __future__ import annotations

from ham.agreement import SAME_START, RanksDisagreeError, StartError, compare, difference


def test_the_first_key_that_differs_is_shown_in_the_order_of_rank_0() -> None:
    assert difference({"b": 1, "a": 2}, {"a": 3, "b": 4}) == "b is 4 there and 1 on rank 0"
    assert difference({"a": 1}, {"c": True, "a": 1}) == "c is true there and missing on rank 0"
    assert difference({"a": [1, None]}, {}) == "a is missing there and [1, null] on rank 0"


def test_a_value_of_40_characters_is_whole_and_of_41_is_cut_to_40() -> None:
    long, longer = "x" * 40, "y" * 41
    assert difference({"a": long}, {"a": longer}) == f"a is {'y' * 37}... there and {long} on rank 0"


def test_the_first_rank_that_differs_is_named_with_the_cure() -> None:
    one, two = {"seed": 1}, {"seed": 2}
    assert compare([one, one, two, two]) == (
        f"rank 2 differs from rank 0: seed is 2 there and 1 on rank 0; {SAME_START}"
    )
    assert compare([one, two], "do it again").endswith("; do it again")
    assert compare([]) is None


def test_an_error_is_stated_plainly_only_if_all_ranks_have_it() -> None:
    first, second = {"error": "no file"}, {"error": "no key"}
    assert compare([first, first]) == "no file"
    assert compare([first, second]) == "rank 0 of 2: no file"
    assert compare([{}, second, first]) == "rank 1 of 3: no key"
    assert compare([{}, second, second]) == "rank 1 of 3: no key"


def test_every_rank_prints_an_error_of_the_start_that_is_not_marked_as_shared() -> None:
    assert StartError.shared is False and not hasattr(RanksDisagreeError, "shared")
