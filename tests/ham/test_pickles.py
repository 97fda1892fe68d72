"""What the safe reader of pickles accepts, and the one line of what it refuses."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import scipy.sparse

from ham.data import pickles
from ham.data.pickles import load_pickle, plain


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("dtype", ["<i4", ">i4", "<f8", ">f2", "|u1", "|b1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_keep_their_numbers_type_and_order(dtype: str, order: str, protocol: int) -> None:
    array = np.array([[0, 1, 2], [3, 4, 5]], dtype=dtype, order=order)
    again = plain(load_pickle(pickle.dumps(array, protocol=protocol)))
    assert np.array_equal(again, array) and again.dtype == array.dtype


def test_what_is_no_stand_in_is_plain_already() -> None:
    assert plain(load_pickle(pickle.dumps({"a": [1, 2.5, b"c", bytearray(b"d")]}))) == {
        "a": [1, 2.5, b"c", bytearray(b"d")]
    }


def test_indices_of_a_matrix_beyond_its_shape_are_refused() -> None:
    matrix = scipy.sparse.csr_matrix(np.eye(3))
    matrix.indices = np.array([0, 1, 3], dtype=np.int32)
    with pytest.raises(ValueError, match=r"^cannot be unpickled"):
        load_pickle(pickle.dumps(matrix))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("one\n two"), "one two"),
        (ValueError("x" * 151), "x" * 150),
        (MemoryError(), "MemoryError"),
    ],
)
def test_the_reason_is_one_line_of_150_characters(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(pickles._Unpickler):
        def load(self) -> object:
            raise error

    monkeypatch.setattr(pickles, "_Unpickler", Broken)
    with pytest.raises(ValueError) as caught:
        load_pickle(b"")
    assert str(caught.value) == f"cannot be unpickled ({reason})"
