"""Branch-free sin, cos, exp and log for velocities compiled into the sampler.

libm is called once a lane and stops LLVM from vectorising a loop; these are straight polynomials after a range
reduction, so a loop over paths that calls them becomes SIMD code. They work in float64 and in float32
(the type of the argument decides) and may be called from Python too, on scalars.

    sin, cos            |x| <= 2**20: error below 2e-16 + 1 ulp (float64); larger arguments lose digits
    sin2pi, cos2pi      sin(2πx), cos(2πx): exactly periodic on the unit box and cheaper; any |x| < 2**49
    exp                 2 ulp; overflows to inf, underflows through subnormals to 0
    log                 2 ulp; -inf at 0, NaN below

NaN in gives NaN out. Coefficients: fdlibm (Sun Microsystems, 1993) in float64, Cephes (Moshier) in float32.
"""

# Kernels are compiled for whatever types they meet: annotations would say less than numba knows.
# mypy: disallow-untyped-defs=False

from __future__ import annotations

from math import nan
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import extending, float32, int32, int64, types, uint64
from numba.extending import overload

from pdekit.runtime.kernels import kernel

__all__ = ["cos", "cos2pi", "exp", "log", "sin", "sin2pi"]

# Contraction to fused multiply-add is the only relaxed rule: reassociation or nnan would break the range
# reductions and the detection of NaN.
lane = kernel(forceinline=True, fastmath={"contract"})
intrinsic: Any = extending.intrinsic


@intrinsic
def bits_of(typing_context, x):
    """The bits of a float64 (float32) as int64 (int32)."""
    target: Any = {types.float64: types.int64, types.float32: types.int32}[x]

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(target.bitwidth))

    return target(x), codegen


@intrinsic
def float_of(typing_context, bits):
    """The float64 (float32) with the bits of a 64-bit (32-bit) integer."""
    target = types.float64 if bits.bitwidth == 64 else types.float32

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.DoubleType() if bits.bitwidth == 64 else ir.FloatType())

    return target(bits), codegen


# Adding 1.5·2⁵² (1.5·2²³) rounds to the nearest integer and leaves it in the low bits: both results at once,
# without the conversions that AVX2 lacks for 64-bit integers.
_ROUND = 6755399441055744.0
_ROUND32 = np.float32(12582912.0)

_TWO_OVER_PI = 0.63661977236758134308
_PIO2_1, _PIO2_2, _PIO2_3 = 1.5707963267341256, 6.077100506303966e-11, 2.0222662487959506e-21
_PIO2_1F, _PIO2_2F, _PIO2_3F = (
    np.float32(1.5703125),
    np.float32(4.837512969970703e-4),
    np.float32(7.5497899e-8),
)
_TAU = 6.283185307179586
_LOG2E, _LN2_HI, _LN2_LO = 1.4426950408889634, 6.93147180369123816490e-01, 1.90821492927058770002e-10


@lane
def sin_kernel(r):
    """sin(r), |r| <= π/4."""
    z = r * r
    p = 2.75573137070700676789e-06 + z * (-2.50507602534068634195e-08 + z * 1.58969099521155010221e-10)
    p = 8.33333333332248946124e-03 + z * (-1.98412698298579493134e-04 + z * p)
    return r + r * z * (-1.66666666666666324348e-01 + z * p)


@lane
def cos_kernel(r):
    """cos(r), |r| <= π/4."""
    z = r * r
    p = -2.75573143513906633035e-07 + z * (2.08757232129817482790e-09 - z * 1.13596475577881948265e-11)
    p = 4.16666666666666019037e-02 + z * (-1.38888888888741095749e-03 + z * (2.48015872894767294178e-05 + z * p))
    return 1.0 - (0.5 * z - z * z * p)


@lane
def sin_kernel32(r):
    z = r * r
    p = float32(8.3321608736e-3) - z * float32(1.9515295891e-4)
    return r + r * z * (z * p - float32(1.6666654611e-1))


@lane
def cos_kernel32(r):
    z = r * r
    p = float32(4.166664568298827e-2) + z * (z * float32(2.443315711809948e-5) - float32(1.388731625493765e-3))
    return float32(1.0) - (float32(0.5) * z - z * z * p)


@lane
def _quadrant(r, q):
    """sin(r + q π/2): the polynomial of the right quadrant, its sign set through the sign bit."""
    s, c = sin_kernel(r), cos_kernel(r)
    return float_of(bits_of(c if q & 1 else s) ^ ((q & 2) << 62))


@lane
def _quadrant32(r, q):
    s, c = sin_kernel32(r), cos_kernel32(r)
    return float_of(int32(bits_of(c if q & int32(1) else s) ^ int32((q & int32(2)) << int32(30))))


@lane
def _sin(x, shift):
    m = x * _TWO_OVER_PI + _ROUND
    n = m - _ROUND
    return _quadrant(((x - n * _PIO2_1) - n * _PIO2_2) - n * _PIO2_3, bits_of(m) + shift)


@lane
def _sin32(x, shift):
    m = x * float32(_TWO_OVER_PI) + _ROUND32
    n = m - _ROUND32
    r = ((x - n * _PIO2_1F) - n * _PIO2_2F) - n * _PIO2_3F
    return _quadrant32(r, int32(bits_of(m) + int32(shift)))


@lane
def _sin2pi(x, shift):
    m = 4.0 * x + _ROUND
    return _quadrant((x - 0.25 * (m - _ROUND)) * _TAU, bits_of(m) + shift)


@lane
def _sin2pi32(x, shift):
    m = float32(4.0) * x + _ROUND32
    r = (x - float32(0.25) * (m - _ROUND32)) * float32(_TAU)
    return _quadrant32(r, int32(bits_of(m) + int32(shift)))


@lane
def _exp(x):
    low = -746.0 if x < -746.0 else x
    y = 710.0 if low > 710.0 else low  # NaN fails both comparisons and passes through
    m = y * _LOG2E + _ROUND
    n = m - _ROUND
    r = (y - n * _LN2_HI) - n * _LN2_LO
    p = 1.0 / 39916800.0 + r * (1.0 / 479001600.0 + r * (1.0 / 6227020800.0))
    p = 1.0 / 362880.0 + r * (1.0 / 3628800.0 + r * p)
    p = 1.0 / 5040.0 + r * (1.0 / 40320.0 + r * p)
    p = 1.0 / 120.0 + r * (1.0 / 720.0 + r * p)
    p = 1.0 + r * (1.0 + r * (0.5 + r * (1.0 / 6.0 + r * (1.0 / 24.0 + r * p))))
    k = bits_of(m) - bits_of(_ROUND)
    half = k >> 1  # 2**k in two factors, so that neither overflows where the result does not
    return p * float_of((half + 1023) << 52) * float_of((k - half + 1023) << 52)


@lane
def _exp32(x):
    low = float32(-104.0) if x < float32(-104.0) else x
    y = float32(89.0) if low > float32(89.0) else low
    m = y * float32(_LOG2E) + _ROUND32
    n = m - _ROUND32
    r = (y - n * float32(0.693359375)) + n * float32(2.12194440e-4)
    p = float32(8.3334519073e-3) + r * (float32(1.3981999507e-3) + r * float32(1.9875691500e-4))
    p = float32(5.0000001201e-1) + r * (float32(1.6666665459e-1) + r * (float32(4.1665795894e-2) + r * p))
    p = float32(1.0) + (r + r * r * p)
    k = int32(bits_of(m) - bits_of(_ROUND32))
    half = int32(k >> int32(1))
    scale = float_of(int32((half + int32(127)) << int32(23)))
    return p * scale * float_of(int32((int32(k - half) + int32(127)) << int32(23)))


@lane
def log_kernel(x):
    """log(x) for a positive normal float64."""
    bits = bits_of(x) - 0x3FE6A09E667F3BCD  # √½, so that the mantissa lies in [√½, √2)
    k = bits >> 52
    f = float_of((bits & 0xFFFFFFFFFFFFF) + 0x3FE6A09E667F3BCD) - 1.0
    e = float_of(uint64(k + 0x4338000000000000)) - _ROUND  # int64 to float64 through the same trick
    s = f / (2.0 + f)
    z = s * s
    p = 2.222219843214978396e-01 + z * (
        1.818357216161805012e-01 + z * (1.531383769920937332e-01 + z * 1.479819860511658591e-01)
    )
    p = z * (6.666666666666735130e-01 + z * (3.999999999940941908e-01 + z * (2.857142874366239149e-01 + z * p)))
    half = 0.5 * f * f
    return e * _LN2_HI - ((half - (s * (half + p) + e * _LN2_LO)) - f)


@lane
def log_kernel32(x):
    """log(x) for a positive normal float32."""
    bits = int32(bits_of(x) - int32(0x3F3504F3))
    f = float_of(int32((bits & int32(0x7FFFFF)) + int32(0x3F3504F3))) - float32(1.0)
    e = float32(int32(bits >> int32(23)))
    p = float32(-1.1514610310e-1) + f * float32(7.0376836292e-2)
    p = float32(-1.2420140846e-1) + f * (float32(1.1676998740e-1) + f * p)
    p = float32(-1.6668057665e-1) + f * (float32(1.4249322787e-1) + f * p)
    p = float32(-2.4999993993e-1) + f * (float32(2.0000714765e-1) + f * p)
    p = f * (float32(3.3333331174e-1) + f * p)
    z = f * f
    return f + ((p * z - e * float32(2.12194440e-4)) - float32(0.5) * z) + e * float32(0.693359375)


@lane
def _log(x):
    small = x < 2.2250738585072014e-308
    y = log_kernel(x * 18014398509481984.0 if small else x) - (37.42994775023705 if small else 0.0)
    y = y if x < np.inf else x  # inf and NaN come back unchanged
    y = nan if x < 0.0 else y
    return -np.inf if x == 0.0 else y


@lane
def _log32(x):
    small = x < float32(1.1754944e-38)
    y = log_kernel32(x * float32(16777216.0) if small else x)
    y = y - (float32(16.635532) if small else float32(0.0))
    y = y if x < float32(np.inf) else x
    y = float32(nan) if x < float32(0.0) else y
    return float32(-np.inf) if x == float32(0.0) else y


def sin(x: float) -> float:
    """sin(x), x in radians."""
    return _sin(float(x), 0)


def cos(x: float) -> float:
    """cos(x), x in radians."""
    return _sin(float(x), 1)


def sin2pi(x: float) -> float:
    """sin(2πx): the natural sine of the unit box, exactly periodic."""
    return _sin2pi(float(x), 0)


def cos2pi(x: float) -> float:
    """cos(2πx): the natural cosine of the unit box, exactly periodic."""
    return _sin2pi(float(x), 1)


def exp(x: float) -> float:
    """e**x."""
    return _exp(float(x))


def log(x: float) -> float:
    """Natural logarithm."""
    return _log(float(x))


@overload(sin, inline="always")
def _sin_of_type(x):
    return (lambda x: _sin32(x, 0)) if x == types.float32 else (lambda x: _sin(float(x), int64(0)))


@overload(cos, inline="always")
def _cos_of_type(x):
    return (lambda x: _sin32(x, 1)) if x == types.float32 else (lambda x: _sin(float(x), int64(1)))


@overload(sin2pi, inline="always")
def _sin2pi_of_type(x):
    return (lambda x: _sin2pi32(x, 0)) if x == types.float32 else (lambda x: _sin2pi(float(x), int64(0)))


@overload(cos2pi, inline="always")
def _cos2pi_of_type(x):
    return (lambda x: _sin2pi32(x, 1)) if x == types.float32 else (lambda x: _sin2pi(float(x), int64(1)))


@overload(exp, inline="always")
def _exp_of_type(x):
    return (lambda x: _exp32(x)) if x == types.float32 else (lambda x: _exp(float(x)))


@overload(log, inline="always")
def _log_of_type(x):
    return (lambda x: _log32(x)) if x == types.float32 else (lambda x: _log(float(x)))
