"""Judge what studies/theorems.py measured: fits, counts and ratios, each with n and an error."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
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
FIT_UP_TO = 0.5  # |δ|/σ; beyond, the modulus bends towards its largest value 2|f|
BANDS = (0.05, 0.3, 1.0, 1.5, 2.0, 3.0)  # of σ


def judge(results: Fields) -> Fields:
    """The verdicts on both theorems, fit for JSON."""
    return {
        "theorem1": judge_moduli(np.array(results["scaled_shifts"]), results["moduli"], results["steep"]),
        "theorem2": judge_gradients(results["gradients"]),
        "ramp": judge_ramp(results["ramp"]),
    }


def columns(rows: list[Fields], *names: str) -> tuple[Array, ...]:
    return tuple(np.array([row[name] for row in rows], dtype=float) for name in names)


def grouped(rows: list[Fields], *names: str) -> dict[tuple[Any, ...], list[Fields]]:
    """The rows by their values of `names`, in the order in which these appear."""
    groups: dict[tuple[Any, ...], list[Fields]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def mean_and_error(values: Array) -> list[float]:
    """The mean over independent velocities, and its standard error (0 for a single one)."""
    return [float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0]


def least_and_largest(values: Array) -> list[float]:
    return [float(values.min()), float(values.max())]


# Theorem 1


def envelopes(moduli: list[Fields], z: Array) -> list[Fields]:
    """For each velocity the modulus over z = |δ|/σ, largest over f: for each σ, and the supremum over σ.

    constants: C at α = 1 for each σ, the smallest with ω <= C z; constant: their largest. alpha, fitted: of C z^α to
    the supremum.
    """
    found = []
    near = z <= FIT_UP_TO
    for rows in grouped(moduli, "flow").values():
        sigmas = sorted({row["sigma"] for row in rows})
        by_sigma = np.array([np.max([r["modulus"] for r in rows if r["sigma"] == s], axis=0) for s in sigmas])
        supremum, constants = by_sigma.max(axis=0), (by_sigma / z).max(axis=1)
        alpha, log_c = np.polyfit(np.log(z[near]), np.log(supremum[near]), 1)
        found.append(
            {key: rows[0][key] for key in ("dim", "kind", "speed", "gamma")}
            | {"sigmas": sigmas, "by_sigma": by_sigma, "supremum": supremum}
            | {"constants": constants, "constant": constants.max(), "alpha": alpha, "fitted": np.exp(log_c)}
        )
    return found


def judge_moduli(z: Array, moduli: list[Fields], steep: list[Fields]) -> Fields:
    flows = envelopes(moduli, z)
    still, random = ([f for f in flows if (f["kind"] == "constant") is kind] for kind in (True, False))
    bound = np.array([coupling_modulus(z * r["sigma"], r["gamma"], r["sigma"]) for r in moduli])
    omega, error = columns(moduli, "modulus", "error")
    lines = grouped([flow for flow in random if flow["dim"] == 1], "kind")
    return {
        "n": len(moduli),
        "velocities": len(flows),
        "error_max": float(error.max()),
        "error_relative": float((error / omega)[:, z <= FIT_UP_TO].max()),
        "fits": [_fit(group) for group in grouped(flows, "kind", "dim", "speed").values()],
        "closed_form": _against_closed_form([row for row in moduli if "exact" in row], z),
        "collapse": {"constant": _spread(still), "random": _spread(random), "random_small_sigma": _spread(random, 0.2)},
        # the slope at 0 of a bound that the entry "coupling" checks at every shift
        "envelope": {
            "C": float(max(f["constant"] for f in random)),
            "finite": all(f["constant"] <= 1.01 * coupling_constant(f["gamma"]) for f in flows),
        },
        "growth": [_growth(kind, group) for (kind,), group in lines.items()],
        "coupling": {
            "violations": int((omega - error > bound).sum()),
            "n": omega.size,
            "largest_ratio": float((omega / bound).max()),
        },
        "steep": [_steepened(sigma, rows, z) for (sigma,), rows in grouped(steep, "sigma").items()],
    }


def _fit(flows: list[Fields]) -> Fields:
    """C (|δ|/σ)^α over the velocities of one kind."""
    alpha, fitted, constant, gamma = columns(flows, "alpha", "fitted", "constant", "gamma")
    means = {"gamma": gamma, "alpha": alpha, "C": fitted, "C_at_alpha_1": constant}
    found = {name: mean_and_error(values) for name, values in means.items()}
    labels = {name: flows[0][name] for name in ("kind", "dim", "speed")}
    return labels | found | {"n": len(flows), "largest_C_at_alpha_1": float(constant.max())}


def _against_closed_form(rows: list[Fields], z: Array) -> Fields:
    omega, exact, error = columns(rows, "modulus", "exact", "error")
    single = np.array([coupling_modulus(z * r["sigma"], 0.0, r["sigma"]) for r in rows])
    near = z <= FIT_UP_TO
    return {
        "n": len(rows),
        "largest_difference": float(np.abs(omega - exact).max()),
        "error_max": float(error.max()),
        "largest_relative": float(np.abs(omega / exact - 1.0)[:, near].max()),
        "one_step_relative": float(np.abs(omega / single - 1.0)[:, near].max()),
    }


def _spread(flows: list[Fields], sigma_max: float = 1.0) -> Fields:
    """Variation of C at α = 1 with σ for one velocity: its largest over its smallest value."""
    constants = [flow["constants"][np.array(flow["sigmas"]) <= sigma_max] for flow in flows]
    ratios = [found.max() / found.min() for found in constants]
    return {"n": len(flows), "median": float(np.median(ratios)), "largest": float(np.max(ratios))}


def _growth(kind: str, flows: list[Fields]) -> Fields:
    """C ∝ max|F|^p by least squares over the velocities of one roughness, p with its standard error."""
    speed, constant, gamma = columns(flows, "speed", "constant", "gamma")
    (slope, _), covariance = np.polyfit(np.log(speed), np.log(constant), 1, cov=True)
    return {
        "kind": kind,
        "n": len(flows),
        "exponent": [float(slope), float(np.sqrt(covariance[0, 0]))],
        "share_of_coupling": least_and_largest(constant / coupling_constant(gamma)),
    }


def _steepened(sigma: float, rows: list[Fields], z: Array) -> Fields:
    """At one speed: C at the gentlest and the steepest velocity, and the modulus at |δ| = σ/4 of the steepest."""
    rows = sorted(rows, key=lambda row: row["gamma"])
    omega, error = columns(rows, "modulus", "error")
    return {
        "sigma": sigma,
        "gammas": [row["gamma"] for row in rows],
        "constants": (omega / z).max(axis=1).tolist(),
        "modulus_at_quarter": [float(np.interp(0.25, z, values[-1])) for values in (omega, error)],
        "error_relative": float((error / omega)[:, z <= FIT_UP_TO].max()),
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
        smallest, largest = (float(sigma[fails].min()), float(gamma[fails].max())) if fails.any() else (None, None)
        bounds[name] = {
            "fails": int(fails.sum()),
            "undecided": int((np.abs(measured - bound) <= error + images).sum()),
            "share": mean_and_error(np.array([fails[flow == number].mean() for number in np.unique(flow)])),
            "bands": [_band(low, high, sigma, fails) for low, high in pairwise(BANDS)],
            "largest_ratio": float((measured / bound).max()),
            "median_ratio": float(np.median(measured / bound)),
            "fails_where_proven": int((fails & proven).sum()),
            "smallest_sigma": smallest,
            "largest_gamma": largest,
            "smallest_sigma2_over_gamma": float((sigma**2 / gamma)[fails].min()) if fails.any() else None,
        }
    return {
        "n": len(rows),
        "velocities": len(set(flow)),
        "bounds": bounds,
        "error_relative": [float(np.median(error / measured)), float((error / measured).max())],
        "images_relative": float((images / measured).max()),
        "proven": int(proven.sum()),
    }


def _band(low: float, high: float, sigma: Array, fails: NDArray[np.bool_]) -> Fields:
    inside = (sigma >= low) & (sigma < high)
    return {"low": low, "high": high, "n": int(inside.sum()), "fails": int(fails[inside].sum())}


def judge_ramp(ramp: Fields) -> Fields:
    sigma, measured, error, images = (np.array(ramp[k]) for k in ("sigma", "measured", "error", "images"))

    def bound(name: str, sigma: Any) -> Any:
        return BOUNDS[name](0.0, sigma, 1.0, 1.0)

    def closed(sigma: Any) -> Any:
        return erf(1.0 / (np.sqrt(2.0) * sigma))

    def crossing(name: str) -> float:
        return float(brentq(lambda s: closed(s) - bound(name, s), 0.5, 3.0, xtol=1e-12))

    return {
        "n": len(sigma),
        "closed_form_difference": float(np.abs(measured - closed(sigma)).max()),
        "error_max": float(error.max()),
        "images_max": float(images.max()),
        "fails_from": {name: crossing(name) for name in ("printed", "halved")},
        "fails": {name: int((measured - error - images > bound(name, sigma)).sum()) for name in BOUNDS},
        "coupling_ratio": least_and_largest(measured / bound("coupling", sigma)),
    }
