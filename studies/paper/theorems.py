"""From what studies/theorems.py measured to what it says: fits, counts and ratios, each with n and an error."""

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


def columns(rows: list[Fields], *names: str) -> tuple[Array, ...]:
    return tuple(np.array([row[name] for row in rows], dtype=float) for name in names)


def mean_and_error(values: Array) -> list[float]:
    """The mean over independent velocities, and its standard error (0 for a single one)."""
    return [float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0]


def judge(results: Fields) -> Fields:
    return {
        "theorem1": judge_moduli(results["scaled_shifts"], results["moduli"], results["steep"]),
        "theorem2": judge_gradients(results["gradients"]),
        "ramp": judge_ramp(results["ramp"]),
    }


# Theorem 1


def envelopes(moduli: list[Fields]) -> list[Fields]:
    """For each velocity the modulus over |δ|/σ, its supremum over σ and f, and its constant C at α = 1 for each σ."""
    out = []
    for flow in sorted({row["flow"] for row in moduli}):
        rows = [row for row in moduli if row["flow"] == flow]
        sigmas = sorted({row["sigma"] for row in rows})
        by_sigma = np.array([np.max([r["modulus"] for r in rows if r["sigma"] == s], axis=0) for s in sigmas])
        out.append(
            {key: rows[0][key] for key in ("dim", "kind", "speed", "gamma")}
            | {"sigmas": sigmas, "by_sigma": by_sigma, "supremum": by_sigma.max(axis=0)}
        )
    return out


def judge_moduli(scaled_shifts: list[float], moduli: list[Fields], steep: list[Fields]) -> Fields:
    z = np.array(scaled_shifts)
    flows = envelopes(moduli)
    for flow in flows:
        flow["constants"] = (flow["by_sigma"] / z).max(axis=1)
        flow["constant"] = flow["constants"].max()
        near = z <= FIT_UP_TO
        alpha, log_c = np.polyfit(np.log(z[near]), np.log(flow["supremum"][near]), 1)
        flow |= {"alpha": alpha, "fitted": np.exp(log_c)}
    random = [f for f in flows if f["kind"] != "constant"]
    still = [f for f in flows if f["kind"] == "constant"]
    fits = []
    for kind in dict.fromkeys(f["kind"] for f in flows):
        for dim, speed in sorted({(f["dim"], f["speed"]) for f in flows if f["kind"] == kind}):
            group = [f for f in flows if (f["kind"], f["dim"], f["speed"]) == (kind, dim, speed)]
            alpha, fitted, constant, gamma = columns(group, "alpha", "fitted", "constant", "gamma")
            fits.append({
                "kind": kind, "dim": dim, "speed": speed, "n": len(group), "gamma": mean_and_error(gamma),
                "alpha": mean_and_error(alpha), "C": mean_and_error(fitted), "C_at_alpha_1": mean_and_error(constant),
                "largest_C_at_alpha_1": float(constant.max()),
            })  # fmt: skip
    bound = np.array([coupling_modulus(z * r["sigma"], r["gamma"], r["sigma"]) for r in moduli])
    omega, error = columns(moduli, "modulus", "error")
    return {
        "n": len(moduli),
        "velocities": len(flows),
        "error_max": float(error.max()),
        "error_relative": float((error / omega)[:, z <= FIT_UP_TO].max()),
        "fits": fits,
        "closed_form": _against_closed_form(moduli, z),
        "collapse": {
            "constant": _spread(still), "random": _spread(random),
            "random_small_sigma": _spread(random, 0.2),
        },
        # the slope at 0 of a bound that the next entry checks at every shift
        "envelope": {"C": float(max(f["constant"] for f in random)),
                     "finite": all(f["constant"] <= 1.01 * coupling_constant(f["gamma"]) for f in flows)},
        "growth": [_growth([f for f in random if f["kind"] == kind and f["dim"] == 1])
                   for kind in dict.fromkeys(f["kind"] for f in random)],
        "coupling": {
            "violations": int((omega - error > bound).sum()), "n": omega.size,
            "largest_ratio": float((omega / bound).max()),
        },
        "steep": _steep(steep, z),
    }  # fmt: skip


def _against_closed_form(moduli: list[Fields], z: Array) -> Fields:
    rows = [r for r in moduli if "exact" in r]
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
    """How far C at α = 1 varies with σ for one velocity: its largest over its smallest value."""
    ratios = []
    for flow in flows:
        constants = flow["constants"][np.array(flow["sigmas"]) <= sigma_max]
        ratios.append(constants.max() / constants.min())
    return {"n": len(flows), "median": float(np.median(ratios)), "largest": float(np.max(ratios))}


def _growth(flows: list[Fields]) -> Fields:
    """C ∝ max|F|^p by least squares over the velocities of one roughness, p with its standard error."""
    speed, constant, gamma = columns(flows, "speed", "constant", "gamma")
    slope, variance = _slope(np.log(speed), np.log(constant))
    tight = constant / coupling_constant(gamma)
    return {
        "kind": flows[0]["kind"],
        "n": len(flows),
        "exponent": [slope, float(np.sqrt(variance))],
        "share_of_coupling": [float(tight.min()), float(tight.max())],
    }


def _slope(x: Array, y: Array) -> tuple[float, float]:
    coefficients, covariance = np.polyfit(x, y, 1, cov=True)
    return float(coefficients[0]), float(covariance[0, 0])


def _steep(rows: list[Fields], z: Array) -> list[Fields]:
    """At one speed: C at the gentlest and the steepest velocity, and the modulus at |δ| = σ/4 of the steepest."""
    out = []
    for sigma in dict.fromkeys(r["sigma"] for r in rows):
        line = sorted((r for r in rows if r["sigma"] == sigma), key=lambda r: r["gamma"])
        constants = [float((np.array(r["modulus"]) / z).max()) for r in line]
        steepest = line[-1]
        at = [float(np.interp(0.25, z, steepest[key])) for key in ("modulus", "error")]
        relative = max(float((np.array(r["error"]) / np.array(r["modulus"]))[z <= FIT_UP_TO].max()) for r in line)
        out.append(
            {
                "sigma": sigma,
                "gammas": [r["gamma"] for r in line],
                "constants": constants,
                "modulus_at_quarter": at,
                "error_relative": relative,
            }
        )
    return out


# Theorem 2


def judge_gradients(rows: list[Fields]) -> Fields:
    flow, gamma, sigma, u_max, grad_max, measured = columns(
        rows, "flow", "gamma", "sigma", "u_max", "grad_max", "measured"
    )
    discretisation, images = columns(rows, "error", "images")
    error = discretisation + images
    out: Fields = {
        "n": len(rows), "velocities": len(set(flow)), "bounds": {},
        "error_relative": [float(np.median(discretisation / measured)), float((discretisation / measured).max())],
        "images_relative": float((images / measured).max()),
    }  # fmt: skip
    proven = (gamma >= sigma**2) & (u_max <= 2.0 * grad_max)  # λ = γ - σ² >= 0 with μ = 2
    for name, bound_of in BOUNDS.items():
        bound = bound_of(gamma, sigma, u_max, grad_max)
        ratio, fails = measured / bound, measured - error > bound
        shares = np.array([fails[flow == f].mean() for f in np.unique(flow)])
        bands = []
        for low, high in pairwise(BANDS):
            inside = (sigma >= low) & (sigma < high)
            bands.append({"low": low, "high": high, "n": int(inside.sum()), "fails": int(fails[inside].sum())})
        out["bounds"][name] = {
            "fails": int(fails.sum()),
            "undecided": int((np.abs(measured - bound) <= error).sum()),
            "share": mean_and_error(shares),
            "bands": bands,
            "largest_ratio": float(ratio.max()),
            "median_ratio": float(np.median(ratio)),
            "fails_where_proven": int((fails & proven).sum()),
            "smallest_sigma": float(sigma[fails].min()) if fails.any() else None,
            "largest_gamma": float(gamma[fails].max()) if fails.any() else None,
            "smallest_sigma2_over_gamma": float((sigma**2 / gamma)[fails].min()) if fails.any() else None,
        }
    out["proven"] = int(proven.sum())
    return out


def judge_ramp(ramp: Fields) -> Fields:
    sigma, measured, error, images = (np.array(ramp[k]) for k in ("sigma", "measured", "error", "images"))
    closed = erf(1.0 / (np.sqrt(2.0) * sigma))

    def crossing(name: str) -> float:
        return float(
            brentq(lambda s: erf(1.0 / (np.sqrt(2.0) * s)) - BOUNDS[name](0.0, s, 1.0, 1.0), 0.5, 3.0, xtol=1e-12)
        )

    return {
        "n": len(sigma),
        "closed_form_difference": float(np.abs(measured - closed).max()),
        "error_max": float(error.max()),
        "images_max": float(images.max()),
        "fails_from": {name: crossing(name) for name in ("printed", "halved")},
        "fails": {
            name: int((measured - error - images > of(0.0, sigma, 1.0, 1.0)).sum()) for name, of in BOUNDS.items()
        },
        "coupling_ratio": [float(x) for x in np.sort(measured / coupling_bound(0.0, sigma, 1.0, 1.0))[[0, -1]]],
    }
