"""Judge what studies/theorems.py measured: counts and ratios, each with n and an error."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import erf

from pdekit.regularity import bernstein_bound, coupling_bound, coupling_constant, coupling_modulus, printed_bound

Array = NDArray[np.float64]
Fields = dict[str, Any]

BOUNDS: dict[str, Callable[..., Array]] = {
    "printed": printed_bound,
    "halved": lambda gamma, sigma, *norms: printed_bound(gamma, sigma / np.sqrt(2.0), *norms),
    "bernstein": lambda *arguments: bernstein_bound(*arguments, mu=1.0),
    "best_mu": bernstein_bound,
    "coupling": coupling_bound,
}
NEAR = 0.5  # |δ|/σ; beyond, the modulus bends towards its largest value 2|f|


def judge(results: Fields) -> Fields:
    """The verdicts on both theorems, fit for JSON."""
    return {
        "theorem1": judge_moduli(np.array(results["scaled_shifts"]), results["moduli"], results["steep"]),
        "theorem2": judge_gradients(results["gradients"]),
        "ramp": judge_ramp(results["ramp"]),
    }


def columns(rows: list[Fields], *names: str) -> tuple[Array, ...]:
    return tuple(np.array([row[name] for row in rows], dtype=float) for name in names)


# Theorem 1


def envelopes(moduli: list[Fields], z: Array) -> list[Fields]:
    """For each velocity the modulus over z = |δ|/σ, largest over f: for each σ, and the supremum over σ.

    constants: C at α = 1 for each σ, the smallest with ω <= C z; constant: their largest.
    """
    found = []
    for _, group in groupby(moduli, itemgetter("flow")):
        rows = list(group)
        sigmas = sorted({row["sigma"] for row in rows})
        by_sigma = np.array([np.max([r["modulus"] for r in rows if r["sigma"] == s], axis=0) for s in sigmas])
        supremum, constants = by_sigma.max(axis=0), (by_sigma / z).max(axis=1)
        found.append(
            {key: rows[0][key] for key in ("dim", "kind", "speed", "gamma")}
            | {"sigmas": sigmas, "by_sigma": by_sigma, "supremum": supremum}
            | {"constants": constants, "constant": constants.max()}
        )
    return found


def judge_moduli(z: Array, moduli: list[Fields], steep: list[Fields]) -> Fields:
    flows = envelopes(moduli, z)
    bound = np.array([coupling_modulus(z * r["sigma"], r["gamma"], r["sigma"]) for r in moduli])
    omega, error = columns(moduli, "modulus", "error")
    return {
        "n": len(moduli),
        "velocities": len(flows),
        "error_relative": float((error / omega)[:, z <= NEAR].max()),
        "closed_form": _against_closed_form([row for row in moduli if "exact" in row]),
        # the slope at 0 of a bound that the entry "coupling" checks at every shift
        "envelope": {
            "C": float(max(f["constant"] for f in flows if f["kind"] != "constant")),
            "finite": all(f["constant"] <= 1.01 * coupling_constant(f["gamma"]) for f in flows),
        },
        "coupling": {
            "violations": int((omega - error > bound).sum()),
            "n": omega.size,
            "largest_ratio": float((omega / bound).max()),
        },
        "steep": [_steepened(sigma, list(rows), z) for sigma, rows in groupby(steep, itemgetter("sigma"))],
    }


def _against_closed_form(rows: list[Fields]) -> Fields:
    omega, exact, error = columns(rows, "modulus", "exact", "error")
    return {
        "n": len(rows),
        "largest_difference": float(np.abs(omega - exact).max()),
        "error_max": float(error.max()),
    }


def _steepened(sigma: float, rows: list[Fields], z: Array) -> Fields:
    """At one speed: C at the gentlest and the steepest velocity, and the modulus at |δ| = σ/4 of the steepest."""
    omega, error = columns(rows, "modulus", "error")
    return {
        "sigma": sigma,
        "gammas": [row["gamma"] for row in rows],
        "constants": (omega / z).max(axis=1).tolist(),
        "modulus_at_quarter": [float(np.interp(0.25, z, values[-1])) for values in (omega, error)],
    }


# Theorem 2


def judge_gradients(rows: list[Fields]) -> Fields:
    cases = columns(rows, "gamma", "sigma", "u_max", "grad_max")
    gamma, sigma, u_max, grad_max = cases
    flow, measured, error, images = columns(rows, "flow", "measured", "error", "images")
    proven = (gamma >= sigma**2) & (u_max <= 2.0 * grad_max)  # λ = γ - σ² >= 0 with μ = 2
    bounds = {}
    for name, bound_of in BOUNDS.items():
        bound = bound_of(*cases)
        fails = measured - (error + images) > bound
        bounds[name] = {
            "fails": int(fails.sum()),
            "undecided": int((np.abs(measured - bound) <= error + images).sum()),
            "largest_ratio": float((measured / bound).max()),
            "median_ratio": float(np.median(measured / bound)),
            "fails_where_proven": int((fails & proven).sum()),
            "smallest_sigma": float(sigma[fails].min()) if fails.any() else None,
        }
    return {
        "n": len(rows),
        "velocities": len(set(flow)),
        "bounds": bounds,
        "error_relative": [float(np.median(error / measured)), float((error / measured).max())],
        "images_relative": float((images / measured).max()),
        "proven": int(proven.sum()),
    }


def judge_ramp(ramp: Fields) -> Fields:
    sigma, measured, error, images = (np.array(ramp[k]) for k in ("sigma", "measured", "error", "images"))

    def bound(name: str, sigma: Any) -> Any:
        return BOUNDS[name](0.0, sigma, 1.0, 1.0)

    def closed(sigma: Any) -> Any:
        return erf(1.0 / (np.sqrt(2.0) * sigma))

    def crossing(name: str) -> float:
        return float(brentq(lambda s: closed(s) - bound(name, s), 0.5, 3.0, xtol=1e-12))

    ratio = measured / bound("coupling", sigma)
    return {
        "n": len(sigma),
        "closed_form_difference": float(np.abs(measured - closed(sigma)).max()),
        "fails_from": {name: crossing(name) for name in ("printed", "halved")},
        "fails": {name: int((measured - error - images > bound(name, sigma)).sum()) for name in BOUNDS},
        "coupling_ratio": [float(ratio.min()), float(ratio.max())],
    }
