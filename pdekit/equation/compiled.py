"""Products with derivatives by transforms within compiled loops: the spatial operator's fast way, of rocket-fft."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rocket_fft import c2c, c2r, r2c

from pdekit.numerics.spectral import derivative
from pdekit.runtime.kernels import kernel
from pdekit.runtime.threads import spread, threads_for

if TYPE_CHECKING:
    from pdekit.equation.operator import SpectralOperator

_ROWS = 64  # rows in a block: the working set stays in the second-level cache up to N = 2048


class Compiled:
    """By transforms within compiled loops.

    Terms that differ in their last order alone form a group, which is transformed along the first axes once.
    """

    def __init__(self, operator: SpectralOperator) -> None:
        self._grid, shape = operator.product_grid, operator.shape
        lead, kept = self._grid[:-1], shape[-1]
        groups = sorted({term[:-1] for term in operator.terms})
        self._group = np.array([groups.index(term[:-1]) for term in operator.terms])
        self._last = np.stack([derivative(term[-1], operator.axes[-1]) for term in operator.terms])
        # factors (G, 2K+1) along each of the first axes
        self._factors = tuple(
            np.stack([derivative(group[axis], operator.axes[axis]) for group in groups]) for axis in range(len(lead))
        )
        self._none = tuple(np.ones((1, len(k)), dtype=complex) for k in operator.axes[:-1])
        self._columns = np.zeros((len(groups), *lead, kept), dtype=complex)
        self._flat = self._columns.reshape(len(groups), -1, kept)
        self._first, self._size = self._columns[:1], self._flat[0].size
        self._single: NDArray | None = None  # columns of another field
        between = (lead[0], shape[1], kept) if len(lead) == 2 else (0,) * len(shape)
        self._between = np.zeros(between, dtype=complex)  # after the first of two axes
        self._to_columns, self._to_modes = _PASSES[len(shape)]
        self._scratch = self._new_scratch()

    def _new_scratch(self) -> tuple[NDArray, NDArray]:
        """A block of lines, as modes and, for each term and one field more, as nodes."""
        rows, n = min(_ROWS, self._flat.shape[1]), self._grid[-1]
        return np.empty((rows, n // 2 + 1), dtype=complex), np.empty((len(self._group) + 1, rows, n))

    def _by_rows(self, kernel: Callable[..., None], *args: Any) -> None:
        count = self._flat.shape[1]
        if threads_for(self._size) == 1:
            kernel(0, count, *args, *self._scratch)
            return

        def piece(begin: int, end: int) -> None:
            kernel(begin, end, *args, *self._new_scratch())

        spread(piece, count, items=self._columns.size)

    def _lines_of(self, v_hat: NDArray, threads: int) -> NDArray:
        """Another field's rows along the last axis, (1, rows, K+1), in columns of its own."""
        if self._single is None:
            self._single = np.zeros((1, *self._columns.shape[1:]), dtype=complex)
        self._to_columns(v_hat, self._none, self._between, self._single, threads)
        return self._single.reshape(1, *self._flat.shape[1:])

    def evaluate(self, u_hat: NDArray, coefficients: NDArray, out: NDArray) -> None:
        rows = coefficients.reshape(len(coefficients), -1, self._grid[-1])
        if len(self._grid) == 1:  # a single row, which is its own column
            out[:] = u_hat
            self._by_rows(_product_rows, out[None, None], self._group, self._last, rows)
            return
        threads = threads_for(self._size)
        self._to_columns(u_hat, self._factors, self._between, self._columns, threads)
        self._by_rows(_product_rows, self._flat, self._group, self._last, rows)
        self._to_modes(self._first, self._none, self._between, out, threads)

    def transpose(self, v_hat: NDArray, coefficients: NDArray, out: NDArray) -> None:
        threads = threads_for(self._size)
        rows, lines = coefficients.reshape(len(coefficients), -1, self._grid[-1]), self._lines_of(v_hat, threads)
        self._by_rows(_transposed_rows, lines, self._flat, self._group, self._last, rows)
        self._to_modes(self._columns, self._factors, self._between, out, threads)

    def pair(self, u_hat: NDArray, v_hat: NDArray, weight: float, out: NDArray) -> None:
        threads = threads_for(self._size)
        self._to_columns(u_hat, self._factors, self._between, self._columns, threads)
        lines = self._lines_of(v_hat, threads)
        into = out.reshape(len(out), -1, self._grid[-1])
        self._by_rows(_paired_rows, lines, self._flat, self._group, self._last, weight, into)

    def pull(self, u_hat: NDArray, v_hat: NDArray, coefficients: NDArray, by: NDArray, out: NDArray) -> None:
        threads = threads_for(self._size)
        self._to_columns(u_hat, self._factors, self._between, self._columns, threads)
        lines = self._lines_of(v_hat, threads)
        rows, into = (nodes.reshape(len(nodes), -1, self._grid[-1]) for nodes in (coefficients, by))
        self._by_rows(_pulled_rows, lines, self._flat, self._group, self._last, rows, into)
        self._to_modes(self._columns, self._factors, self._between, out, threads)


@kernel(fastmath={"contract"})
def _to_lines(spec: NDArray, start: int, count: int, factor: NDArray, line_hat: NDArray, lines: NDArray) -> None:
    """Rows start .. start + count - 1 of spec (R, K+1), times a factor (K+1,), to nodes: lines (rows, N)."""
    kept = spec.shape[1]
    for i in range(count):
        for j in range(kept):
            line_hat[i, j] = factor[j] * spec[start + i, j]
        line_hat[i, kept:] = 0.0
    c2r(line_hat[:count], lines[:count], np.array([1]), False, 1.0, 1)


@kernel(fastmath={"contract"})
def _product_rows(
    begin: int,
    end: int,
    spec: NDArray,
    group: NDArray,
    last: NDArray,
    coefficients: NDArray,
    line_hat: NDArray,
    lines: NDArray,
) -> None:
    """Last axis: rows of spec (G, R, K+1) to D^c u, times coefficients (C, R, N), summed, back into spec[0]."""
    terms, kept, block, n = len(group), spec.shape[2], lines.shape[1], lines.shape[2]
    for start in range(begin, end, block):
        count = min(block, end - start)
        for c in range(terms):
            _to_lines(spec[group[c]], start, count, last[c], line_hat, lines[c])
        for i in range(count):
            for j in range(n):
                total = coefficients[0, start + i, j] * lines[0, i, j]
                for c in range(1, terms):
                    total += coefficients[c, start + i, j] * lines[c, i, j]
                lines[0, i, j] = total
        r2c(lines[0, :count], line_hat[:count], np.array([1]), True, 1.0 / n, 1)
        for i in range(count):
            for j in range(kept):  # a slice assigned from an array takes numba a second to compile
                spec[0, start + i, j] = line_hat[i, j]


@kernel(fastmath={"contract"})
def _spread_rows(
    start: int,
    count: int,
    spec: NDArray,
    group: NDArray,
    last: NDArray,
    coefficients: NDArray,
    line_hat: NDArray,
    lines: NDArray,
    v: NDArray,
) -> None:
    """Rows start .. start + count - 1 of spec: v (rows, N) times each coefficient, to modes, times conjugates."""
    n, kept = v.shape[1], spec.shape[2]
    spec[:, start : start + count] = 0.0
    for c in range(len(group)):
        for i in range(count):
            for j in range(n):
                lines[c, i, j] = coefficients[c, start + i, j] * v[i, j]
        r2c(lines[c, :count], line_hat[:count], np.array([1]), True, 1.0 / n, 1)
        for i in range(count):
            for j in range(kept):
                spec[group[c], start + i, j] += np.conj(last[c, j]) * line_hat[i, j]


@kernel(fastmath={"contract"})
def _transposed_rows(
    begin: int,
    end: int,
    single: NDArray,
    spec: NDArray,
    group: NDArray,
    last: NDArray,
    coefficients: NDArray,
    line_hat: NDArray,
    lines: NDArray,
) -> None:
    """Rows of v (1, R, K+1) to nodes, times each coefficient, back, times conjugate factors, summed by groups."""
    terms, kept, block = len(group), spec.shape[2], lines.shape[1]
    one = np.ones(kept, dtype=spec.dtype)
    for start in range(begin, end, block):
        count = min(block, end - start)
        _to_lines(single[0], start, count, one, line_hat, lines[terms])
        _spread_rows(start, count, spec, group, last, coefficients, line_hat, lines[:terms], lines[terms])


@kernel(fastmath={"contract"})
def _paired_rows(
    begin: int,
    end: int,
    single: NDArray,
    spec: NDArray,
    group: NDArray,
    last: NDArray,
    weight: float,
    out: NDArray,
    line_hat: NDArray,
    lines: NDArray,
) -> None:
    """out (C, R, N) += weight · v D^c u, from rows of v (1, R, K+1) and of u (G, R, K+1)."""
    terms, kept, block, n = len(group), spec.shape[2], lines.shape[1], lines.shape[2]
    one = np.ones(kept, dtype=spec.dtype)
    for start in range(begin, end, block):
        count = min(block, end - start)
        _to_lines(single[0], start, count, one, line_hat, lines[terms])
        for c in range(terms):
            _to_lines(spec[group[c]], start, count, last[c], line_hat, lines[c])
            for i in range(count):
                for j in range(n):
                    out[c, start + i, j] += weight * lines[terms, i, j] * lines[c, i, j]


@kernel(fastmath={"contract"})
def _pulled_rows(
    begin: int,
    end: int,
    single: NDArray,
    spec: NDArray,
    group: NDArray,
    last: NDArray,
    coefficients: NDArray,
    by: NDArray,
    line_hat: NDArray,
    lines: NDArray,
) -> None:
    """`_paired_rows` from rows of u in spec, which then take what `_transposed_rows` makes of v."""
    terms, block = len(group), lines.shape[1]
    for start in range(begin, end, block):
        stop = min(start + block, end)
        _paired_rows(start, stop, single, spec, group, last, 1.0, by, line_hat, lines)
        # the nodes of v are in the last lines
        _spread_rows(start, stop - start, spec, group, last, coefficients, line_hat, lines[:terms], lines[terms])


# modes to the columns of each group, transformed along all axes but the last, and back, summed over the groups


@kernel()
def _row(i: int, kept: int, n: int) -> int:
    """Where compact index i of 2K+1 stands among n."""
    return i if i <= kept // 2 else n - kept + i


@kernel()
def _differ(a: NDArray, b: NDArray) -> bool:
    for i in range(len(a)):  # noqa: SIM110
        if a[i] != b[i]:
            return True
    return False


@kernel()
def _to_columns_1d(u: NDArray, factors: Any, between: NDArray, spec: NDArray, threads: int) -> None:
    for j in range(len(u)):
        spec[0, j] = u[j]


@kernel()
def _to_modes_1d(spec: NDArray, factors: Any, between: NDArray, out: NDArray, threads: int) -> None:
    for j in range(len(out)):
        out[j] = spec[0, j]


@kernel(fastmath={"contract"})
def _to_columns_2d(u: NDArray, factors: Any, between: NDArray, spec: NDArray, threads: int) -> None:
    n, kept = spec.shape[1], u.shape[0]
    for g in range(len(spec)):
        for i in range(kept):
            row, factor = _row(i, kept, n), factors[0][g, i]
            for j in range(u.shape[1]):
                spec[g, row, j] = factor * u[i, j]
        spec[g, kept // 2 + 1 : n - kept // 2] = 0.0
        c2c(spec[g], spec[g], np.array([0]), False, 1.0, threads)


@kernel(fastmath={"contract"})
def _to_modes_2d(spec: NDArray, factors: Any, between: NDArray, out: NDArray, threads: int) -> None:
    n, kept = spec.shape[1], out.shape[0]
    for g in range(len(spec)):
        c2c(spec[g], spec[g], np.array([0]), True, 1.0 / n, threads)
        for i in range(kept):
            row, factor = _row(i, kept, n), np.conj(factors[0][g, i])
            for j in range(out.shape[1]):
                out[i, j] = factor * spec[g, row, j] + (out[i, j] if g else 0.0)


@kernel(fastmath={"contract"})
def _to_columns_3d(u: NDArray, factors: Any, between: NDArray, spec: NDArray, threads: int) -> None:
    n, m, kept, across = spec.shape[1], spec.shape[2], u.shape[0], u.shape[1]
    for g in range(len(spec)):
        # groups are in order, so that those of one order along the first axis follow each other
        if g == 0 or _differ(factors[0][g], factors[0][g - 1]):
            for i in range(kept):
                row, first = _row(i, kept, n), factors[0][g, i]
                for j in range(across):
                    for l in range(u.shape[2]):
                        between[row, j, l] = first * u[i, j, l]
            between[kept // 2 + 1 : n - kept // 2] = 0.0
            c2c(between, between, np.array([0]), False, 1.0, threads)
        for i in range(n):
            for j in range(across):
                col, factor = _row(j, across, m), factors[1][g, j]
                for l in range(u.shape[2]):
                    spec[g, i, col, l] = factor * between[i, j, l]
            spec[g, i, across // 2 + 1 : m - across // 2] = 0.0
        c2c(spec[g], spec[g], np.array([1]), False, 1.0, threads)


@kernel(fastmath={"contract"})
def _to_modes_3d(spec: NDArray, factors: Any, between: NDArray, out: NDArray, threads: int) -> None:
    n, m, kept, across = spec.shape[1], spec.shape[2], out.shape[0], out.shape[1]
    for g in range(len(spec)):
        c2c(spec[g], spec[g], np.array([1]), True, 1.0 / m, threads)
        for i in range(n):
            for j in range(across):
                col, factor = _row(j, across, m), np.conj(factors[1][g, j])
                for l in range(out.shape[2]):
                    between[i, j, l] = factor * spec[g, i, col, l]
        c2c(between, between, np.array([0]), True, 1.0 / n, threads)
        for i in range(kept):
            row, factor = _row(i, kept, n), np.conj(factors[0][g, i])
            for j in range(across):
                for l in range(out.shape[2]):
                    out[i, j, l] = factor * between[row, j, l] + (out[i, j, l] if g else 0.0)


_PASSES = {
    1: (_to_columns_1d, _to_modes_1d),
    2: (_to_columns_2d, _to_modes_2d),
    3: (_to_columns_3d, _to_modes_3d),
}
