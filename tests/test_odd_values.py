"""Counts, sizes, seeds, switches and images that are none: each is refused in one line that names it."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bridge import ensemble_estimate
from netkit import attacks, audit, calibration, certify, en_resnet, evaluate, inject_noise
from netkit.attacks import ExpectationOverTransformation
from netkit.models import build, equal_size_resnet, resnet
from netkit.randomness import derived_seed

COUNTS: list[Any] = [0, -1, 2.5, math.nan, math.inf, "3", True]
SIZES: list[Any] = [-1.0, math.nan, math.inf, "0.1", True, 1j]
SEEDS: list[Any] = [-1, 2.5, "3", True, 2**64]


def data() -> tuple[Tensor, Tensor]:
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return x, torch.tensor([1, 2, 3])


def network() -> nn.Module:
    return resnet(8, in_channels=1, width=4, seed=0).eval()


def attack_with(attack: Callable[..., Tensor], **options: Any) -> Tensor:
    usual: dict[str, Any] = {"eps": 0.03, "step_size": 0.01, "num_steps": 2}
    taken = inspect.signature(attack).parameters
    x, y = data()
    x, y = options.pop("x", x), options.pop("y", y)
    return attack(network(), x, y, **{**{name: usual[name] for name in usual if name in taken}, **options})


ATTACKS = [attacks.fgsm, attacks.ifgsm, attacks.pgd, attacks.cw, attacks.arc]


def parameters(kind: type) -> list[Any]:
    """(attack, parameter) for the parameters that are of this type, among others."""
    found = []
    for attack in ATTACKS:
        for name, hint in get_type_hints(attack).items():
            if kind in (hint, *get_args(hint)) and name not in ("judging_draws", "bounds"):
                found.append(pytest.param(attack, name, id=f"{attack.__name__}-{name}"))
    return found


@pytest.mark.parametrize("value", COUNTS)
@pytest.mark.parametrize(("attack", "name"), parameters(int))
def test_a_count_of_an_attack_is_a_whole_number(attack: Callable[..., Tensor], name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected (a whole number|at least 1), got .+$"):
        attack_with(attack, **{name: value})


@pytest.mark.parametrize("value", SIZES)
@pytest.mark.parametrize(("attack", "name"), parameters(float))
def test_a_size_of_an_attack_is_a_finite_number(attack: Callable[..., Tensor], name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected a finite number >= 0, got .+$"):
        attack_with(attack, **{name: value})


def test_the_parameters_of_the_attacks_are_found() -> None:
    assert {case.values[1] for case in parameters(int)} == {
        *("num_steps", "num_restarts", "num_searches", "num_draws", "num_targets")
    }
    assert {case.values[1] for case in parameters(float)} == {"eps", "step_size", "learning_rate", "c", "kappa"}


@pytest.mark.parametrize("name", ["random_start", "clamp_start"])
@pytest.mark.parametrize("value", [None, 1, "no"])
def test_a_switch_is_true_or_false(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected True or False"):
        attack_with(attacks.pgd, **{name: value})


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_images_have_the_type_of_the_weights(attack: Callable[..., Tensor], dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=rf"x: expected images of the weights' torch.float32, got {dtype}; x.to\("):
        attack_with(attack, x=data()[0].to(dtype))


def test_an_error_of_the_model_itself_stays_what_it_is() -> None:
    class Broken(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="of its own"):
        attacks.fgsm(Broken(2, 2), *data(), eps=0.1)


@pytest.mark.parametrize("attack", ATTACKS)
def test_labels_are_a_tensor(attack: Callable[..., Tensor]) -> None:
    with pytest.raises(TypeError, match=r"y: expected a torch\.Tensor, got list"):
        attack_with(attack, y=[1, 2, 3])


@pytest.mark.parametrize("options", [{"loss": "ce"}, {"generator": 3}, {"loss": None}])
def test_functions_and_generators_are_such(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}: expected a "):
        attack_with(attacks.pgd, **options)


def test_numbers_of_numpy_are_numbers() -> None:
    for eps in (np.float32(0.03), np.float64(0.03)):
        assert attack_with(attacks.ifgsm, eps=eps, num_steps=np.int64(2)).shape == data()[0].shape
    assert derived_seed(np.int64(3), "test") == derived_seed(3, "test")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"depth": np.int64(8), "width": np.int32(4), "in_channels": np.int64(1), "num_members": np.int64(2)},
        {"noise_coef": np.float32(0.25)},
        {"noise_std": "constant", "sigma": np.float32(0.25)},
        {"normalize": (np.array([0.25], np.float32), np.array([0.5]))},
        {"normalize": (torch.tensor([0.25]), torch.tensor([0.5]))},
    ],
)
def test_a_network_of_numpys_numbers_is_that_of_the_same_numbers_and_can_be_stored(options: dict[str, Any]) -> None:
    def own(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(part.tolist() for part in value)
        return value.item() if isinstance(value, np.generic) else value

    usual = {"depth": 8, "width": 4, "in_channels": 1, "seed": 0}
    theirs, ours = en_resnet(**(usual | options)), en_resnet(**(usual | {n: own(v) for n, v in options.items()}))
    config = json.dumps(theirs.config)
    assert config == json.dumps(ours.config)
    again = build(json.loads(config))
    again.load_state_dict(theirs.state_dict())
    x, _ = data()
    with again.fixed_noise(0), theirs.fixed_noise(0):
        assert torch.equal(again(x), theirs(x))


def test_an_evaluation_of_numpys_numbers_is_stored_and_found_again(tmp_path: Path) -> None:
    def score(kind: type) -> evaluate.Score:
        attack = partial(attacks.ifgsm, eps=0.25, step_size=0.125, num_steps=1)
        counts = {"eot_draws": kind(2), "num_draws": kind(3), "batch_size": kind(2), "seed": kind(4)}
        return evaluate.robust_accuracy(model, *data(), attack, **counts, store=tmp_path / "score.safetensors")

    model = inject_noise(network(), seed=0)
    first = score(np.int64)
    assert torch.equal(score(int).predictions, first.predictions)
    numbers = {"eps": np.float32(0.25), "seed": np.int64(0), "eot_draws": [np.int64(1)], "num_draws": np.int64(2)}
    report = audit(model, *data(), budget="quick", **numbers).summary()
    assert json.loads(json.dumps(report)) == report


@pytest.mark.parametrize("value", COUNTS)
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("num_draws", lambda value: ExpectationOverTransformation(network(), value)),
        ("num_draws", lambda value: calibration(network(), *data(), num_draws=value)),
        ("batch_size", lambda value: audit(network(), *data(), eps=0.1, batch_size=value)),
        ("num_draws", lambda value: audit(network(), *data(), eps=0.1, num_draws=value)),
        ("eot_draws", lambda value: audit(network(), *data(), eps=0.1, eot_draws=[2, value])),
        ("num_draws", lambda value: certify(network(), data()[0], sigma=0.1, num_draws=value)),
        ("batch_size", lambda value: evaluate.accuracy(network(), *data(), batch_size=value)),
        ("num_members", lambda value: equal_size_resnet(8, num_members=value, width=4)),
        ("width", lambda value: resnet(8, width=value)),
        (
            "num_draws",
            lambda value: ensemble_estimate(
                inject_noise(network()), data()[0], num_draws=value, generator=torch.Generator()
            ),
        ),
    ],
)
def test_counts_elsewhere_are_whole_numbers(name: str, call: Callable[[Any], Any], value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}.*: expected (a whole number|at least [12])"):
        call(value)


@pytest.mark.parametrize("value", SEEDS)
@pytest.mark.parametrize(
    "call",
    [
        lambda value: resnet(8, width=4, seed=value),
        lambda value: inject_noise(network(), seed=value),
        lambda value: evaluate.accuracy(inject_noise(network()), *data(), seed=value),
        lambda value: calibration(network(), *data(), seed=value),
        lambda value: audit(network(), *data(), eps=0.1, seed=value),
    ],
)
def test_a_seed_is_a_whole_number_that_generators_take(call: Callable[[Any], Any], value: Any) -> None:
    with pytest.raises(ValueError, match=r"seed: expected (a whole number|at least 0)"):
        call(value)
