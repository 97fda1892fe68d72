"""A safe reader of pickled numpy arrays and sparse matrices, which old data sets consist of.

Unpickling an untrusted file can run arbitrary code. The unpickler here accepts numbers, strings, lists, dicts
and the descriptions of arrays and matrices, and resolves names only to the functions of this file and to
harmless types. It does not call numpy's own functions: `numpy.dtype` accepts any flags that a file sets.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np


def load_pickle(content: bytes) -> Any:
    """The object in a pickle of Python 2 or 3; the strings of Python 2 become bytes.

    Arrays and matrices are stand-ins, from which `plain` makes numpy's and scipy's.

    Raises:
        ValueError: the pickle is damaged, or contains something else; the message is one line.
    """
    try:
        return _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise anything
        reason = " ".join(str(error).split())[:150]
        raise ValueError(f"cannot be unpickled ({reason or type(error).__name__})") from None


def plain(value: Any) -> Any:
    """The array or matrix (scipy.sparse.csr_matrix) of a stand-in, None where it is empty; else `value`."""
    return getattr(value, "value", None) if isinstance(value, _Array | _SparseMatrix) else value


class _Dtype:
    """Stand-in for `numpy.dtype` in a file: kind and width, such as u1, and byte order."""

    def __init__(self, name: str | bytes, *_: Any) -> None:
        self.name, self.order = _text(name), "="
        if not re.fullmatch("[biuf][1248]", self.name):
            raise pickle.UnpicklingError(f"an array of {self.name!r}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = _text(state[1])


class _Array:
    """Stand-in for `numpy.ndarray` in a file: shape, dtype and bytes, from which `value` is built."""

    value: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, content = state
        self.value = _from_buffer(content, dtype, shape, "F" if is_fortran else "C").value


class _SparseMatrix:
    """Stand-in for `scipy.sparse.csr_matrix` in a file: shape and arrays, from which `value` is built."""

    value: Any

    def __setstate__(self, state: dict[str | bytes, Any]) -> None:
        from scipy.sparse import csr_matrix

        parts = {_text(key): plain(part) for key, part in state.items()}
        rows, columns = parts["_shape"]
        self.value = csr_matrix((parts["data"], parts["indices"], parts["indptr"]), (rows, columns))
        self.value.check_format(full_check=True)  # scipy trusts the indices and would read elsewhere


def _from_buffer(content: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    stand_in = _Array()
    numpy_dtype = np.dtype(dtype.name).newbyteorder(dtype.order)
    stand_in.value = np.frombuffer(content, numpy_dtype).reshape(shape, order=order)
    return stand_in


def _encode(text: str, encoding: str) -> bytes:
    """Bytes in pickle protocols below 3; unlike `_codecs.encode`, this accepts only their encoding."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}")
    return text.encode(encoding)


def _text(value: str | bytes) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else value


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _encode,
    ("builtins", "bytes"): bytes,
    ("builtins", "bytearray"): bytearray,
    ("builtins", "list"): list,
    ("__builtin__", "list"): list,  # Python 2
    ("collections", "defaultdict"): lambda *_: {},
    ("scipy.sparse.csr", "csr_matrix"): _SparseMatrix,
    ("scipy.sparse._csr", "csr_matrix"): _SparseMatrix,
}
for _core in ("numpy.core", "numpy._core"):  # numpy 1, numpy 2
    _ALLOWED[_core + ".multiarray", "_reconstruct"] = lambda *_: _Array()
    _ALLOWED[_core + ".numeric", "_frombuffer"] = _from_buffer  # protocol 5


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            called = f"{module}.{name}"
            raise pickle.UnpicklingError(
                f"it calls {called!r}, which data do not need: do not trust it"
            ) from None
