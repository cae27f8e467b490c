"""Each column's attack, as the registry declares it, and what a task makes of it."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import pytest
import torch

from netkit import attacks, data, evaluate
from studies.lab import work
from studies.lab.attacks import ATTACKS, Strength
from studies.lab.networks import Network
from studies.lab.tasks import Scoring, Settings, Training, tasks_for

EPS = 0.2
SETTINGS = Settings("digits", "digits", Path("out"), num_train=64, attack_steps=2)


def scoring(attack: str, network: str = "En2ResNet8", **options: object) -> Scoring:
    task = tasks_for(dataclasses.replace(SETTINGS, **options), Network.parse(network), 0, [attack], loss="pgd")[-1]  # type: ignore[arg-type]
    assert isinstance(task, Scoring)
    return task


@pytest.mark.parametrize("name", [name for name, row in ATTACKS.items() if row.make is not None])
def test_each_attack_changes_images_and_stays_in_its_ball(name: str) -> None:
    row = ATTACKS[name]
    if (missing := row.lacks()) is not None:
        pytest.skip(missing)
    digits = data.load("digits", num_test=6)
    x, y = digits.images(digits.test.x), digits.test.y
    model = Network.parse("En1ResNet8").build(seed=0, width=4, in_channels=1).eval()
    assert row.make is not None
    x_adv = row.make(Strength(EPS, EPS / 4), row.capped(2), 2)(model, x, y)
    assert x_adv.shape == x.shape
    assert 0 < (x_adv - x).abs().max() <= EPS + 1e-6
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


def test_steps_are_capped_where_there_is_more_than_one() -> None:
    assert [ATTACKS[name].capped(2) for name in ("nat", "fgsm", "ifgsm20", "cw", "autoattack")] == [0, 1, 2, 2, 2]
    assert [ATTACKS[name].capped(None) for name in ("nat", "fgsm", "ifgsm20", "cw", "autoattack")] == [
        0,
        1,
        20,
        50,
        100,
    ]
    assert ATTACKS["cw"].capped(90) == 50


def test_a_column_is_headed_with_the_steps_and_draws_that_are_taken() -> None:
    titles = {name: scoring(name, attack_steps=7, auto_draws=3).title for name in ATTACKS}
    assert titles["ifgsm20"] == "IFGSM7"
    assert titles["cw"] == "C&W (7)"
    assert titles["ifgsm20-eot50"] == "IFGSM7, 50 draws"
    assert titles["autoattack"] == "AutoAttack rand (7 steps, 3 draws)"
    assert titles["fgsm"] == "FGSM"


def test_gradients_are_averaged_over_draws_where_what_is_attacked_is_noisy() -> None:
    draws = {name: scoring(name, eot_draws=7, auto_draws=9).eot_draws for name in ATTACKS}
    expected = {"nat": 1, "transfer": 1, "ifgsm20-eot1": 1, "ifgsm20-eot20": 20, "ifgsm20-eot50": 50, "autoattack": 9}
    assert draws == dict.fromkeys(ATTACKS, 7) | expected
    assert {scoring(name, "Plain2ResNet8", eot_draws=7).eot_draws for name in ATTACKS} == {1}


def test_the_cost_of_a_task_counts_its_passes() -> None:
    digits = Settings(
        "digits", "digits", Path("out"), num_train=100, num_test=40, epochs=3, attack_steps=2, num_draws=9
    )
    training, ifgsm, pgd = tasks_for(digits, Network.parse("ResNet20"), 0, ["ifgsm20", "pgd20"], loss="pgd")
    natural, _ = tasks_for(digits, Network.parse("ResNet20"), 0, ["nat"], loss="natural")
    assert isinstance(training, Training)
    validations = len(range(0, 3, training.config.validate_every)) * training.config.val_num_steps
    assert training.cost == pytest.approx(100 * (3 * (2 + 1) + 0.1 * validations))
    assert natural.cost == pytest.approx(100 * 3)
    assert (ifgsm.cost, pgd.cost) == (pytest.approx(40 * (2 + 3)), pytest.approx(40 * (5 * 2 + 3)))
    noisy = tasks_for(digits, Network.parse("En2ResNet20"), 0, ["ifgsm20-eot20"], loss="pgd")[-1]
    assert noisy.cost == pytest.approx(2 * 40 * (2 * 20 + 3))


def test_a_library_that_is_not_here_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert ATTACKS["autoattack"].lacks() == "AutoAttack rand needs pyautoattack: pip install pyautoattack"
    assert ATTACKS["cw"].lacks() is None


def test_a_noise_free_twin_answers_as_the_network_without_its_noise() -> None:
    for name in ("En2ResNet8", "En1ResNet8&ResNet8", "Pni2ResNet8", "Smooth0.5En1ResNet8"):
        model = Network.parse(name).build(seed=0, width=4, in_channels=1).eval()
        twin = work.noise_free(model)
        x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad(), model.noise_off():
            torch.testing.assert_close(twin(x), model(x))
        assert evaluate.is_random(model, x)
        assert not evaluate.is_random(twin, x)


# Weights of members


def joined(loss: str = "pgd", **options: object) -> Training:
    network = Network.parse("ResNet8&ResNet8")
    task = tasks_for(dataclasses.replace(SETTINGS, **options), network, 0, [], loss=loss, weights="learned")[0]  # type: ignore[arg-type]
    assert isinstance(task, Training)
    assert task.learns_weights
    return task


def test_weights_are_learned_from_blocks_of_attacked_images(monkeypatch: pytest.MonkeyPatch) -> None:
    task = joined()
    model = work.network(task)
    images = work.load_data(SETTINGS).train.first(20)
    whole = work._logits_as_in_training(task, model, images, 3)
    sizes = []
    pgd = attacks.pgd

    def counted(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, **options: object) -> torch.Tensor:
        sizes.append(len(x))
        return pgd(model, x, y, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(attacks, "pgd", counted)
    monkeypatch.setattr(work, "_BLOCK", 8)
    blocks = work._logits_as_in_training(task, model, images, 3)
    assert sizes == [8, 8, 4]
    assert blocks.shape == whole.shape == (2, 20, 10)
    natural = []
    for size in (8, 250):
        monkeypatch.setattr(work, "_BLOCK", size)
        natural.append(work._logits_as_in_training(joined("natural"), model, images, 3))
    torch.testing.assert_close(natural[0], natural[1])
    assert not torch.allclose(natural[0], blocks, atol=1e-3)


def biased(task: Training, bias: float) -> work.EnResNet:
    """Its network, whose first member is wrong by so much that a step of the weights goes far."""
    model = work.network(task)
    with torch.no_grad():
        model.members[0].members[0].fc.bias[0] = bias
    return model


def test_a_step_of_the_weights_is_halved_where_they_would_lose_their_sum() -> None:
    for bias in (0.0, 1e3):
        model = biased(joined("natural"), bias)
        work._update_weights(joined("natural"), model, 4)
        assert float(model.weights.sum()) == pytest.approx(1, rel=1e-5)
        assert float(model.weights.double().std()) > 0


def test_weights_that_lose_their_sum_are_a_training_that_diverged() -> None:
    with pytest.raises(FloatingPointError, match="training diverged: the members' weights after epoch 5: lr: expected"):
        work._update_weights(joined("natural"), biased(joined("natural"), 1e7), 4)
