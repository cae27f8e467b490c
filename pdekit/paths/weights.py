"""Weights of paths: e^(-A) with A = ∫V ds, and what the source has earned on the way, ∫ g e^(-A) ds.

Both integrals are trapezoidal sums over the steps: an error of second order, which leaves the paths' weak order of one
or two as it is. Potential and source are `optional`, () where there is none.
"""

# Kernels are compiled for whatever types they meet: annotations would say less than numba knows.
# mypy: disallow-untyped-defs=False

from __future__ import annotations

from numba.extending import overload

from pdekit.numerics.lanes import decay, field_on_lanes
from pdekit.runtime.kernels import kernel


def accrue(potential, source, level, x, t, half, killed, earned, rates, weight, row):
    """Add the end of a step, at points x (d, L) and time t, to A and to the source's integral, in compiled code.

    half: half a step, 0 to begin with; rates: (2, L), V and g e^(-A) at the step's start, replaced by those at its end;
    weight: (L,), e^(-A) at its end; row: scratch (1, L).
    """
    raise RuntimeError("for compiled code only")


@overload(accrue, inline="always")
def _accrue(potential, source, level, x, t, half, killed, earned, rates, weight, row):
    if len(potential) == 0 and len(source) == 0:
        return lambda potential, source, level, x, t, half, killed, earned, rates, weight, row: None
    if len(potential) == 0:

        def earn_all(potential, source, level, x, t, half, killed, earned, rates, weight, row):
            field_on_lanes(source[1], level, x, t, row)
            _add(half, row[0], rates[1], earned)

        return earn_all

    def kill(potential, source, level, x, t, half, killed, earned, rates, weight, row):
        field_on_lanes(potential[1], level, x, t, row)
        _add(half, row[0], rates[0], killed)
        decay(killed, weight)

    if len(source) == 0:
        return kill

    def kill_and_earn(potential, source, level, x, t, half, killed, earned, rates, weight, row):
        field_on_lanes(potential[1], level, x, t, row)
        _add(half, row[0], rates[0], killed)
        decay(killed, weight)
        field_on_lanes(source[1], level, x, t, row)
        _times(row[0], weight)
        _add(half, row[0], rates[1], earned)

    return kill_and_earn


@kernel(fastmath={"contract"})
def _add(half, rate, before, total):
    for i in range(len(total)):
        total[i] += half * (before[i] + rate[i])
        before[i] = rate[i]


@kernel(fastmath={"contract"})
def _times(rate, weight):
    for i in range(len(rate)):
        rate[i] *= weight[i]
