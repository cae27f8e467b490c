"""Two processes against one. Run by torchrun, this file is what the two processes do."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from netkit import checkpoint, data, evaluate, models, parallel
from netkit.noise import add_scaled_noise
from netkit.training import TrainConfig, TrainResult, train

CONFIG = TrainConfig(
    epochs=2, batch_size=16, eps=0.2, step_size=0.1, num_steps=2, schedule="one-cycle", lr=0.05, seed=7,
    validate_every=1, precision="fp64",
)  # fmt: skip
"""The data have 45 images: batches of 16, 16 and 13."""

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "batch std": ({}, {}),
    "sample std": ({"noise_std": "sample"}, {}),
    "two-point noise": ({"noise": "two_point", "noise_std": "constant", "sigma": 0.3}, {"channels_last": True}),
    "natural": ({}, {"loss": "natural"}),
    "TRADES": ({}, {"loss": "trades"}),
    "TRADES, channels last": ({}, {"loss": "trades", "channels_last": True}),
    "batch norm in the attack": ({}, {"attack_batch_norm": "train"}),
    "a last batch of one image": ({}, {"batch_size": 22}),
}
"""By name, options of the network and of the training."""

HANDOVER = 4  # the update after which a run changes hands: in the second epoch


ROOT = Path(__file__).parent.parent


class Stop(Exception):
    pass


def trained(name: str, path: Path, on_step: Callable[[int, int], None] = lambda done, total: None) -> TrainResult:
    options, changes = CASES[name]
    dataset = dataclasses.replace(data.load("digits", num_train=50), augmented=True)
    model = models.en_resnet(8, **{"num_members": 2, "in_channels": 1, "width": 4, "seed": 1, **options})
    config = dataclasses.replace(CONFIG, **changes)
    return train(model, dataset, config, path=path, checkpoint_steps=1, on_step=on_step)


def trained_in_part(name: str, path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == HANDOVER:
            raise Stop

    with pytest.raises(Stop):
        trained(name, path, stop)


# What a layer makes of a batch of five images, of which two processes hold three and two


def batch() -> list[Tensor]:
    """Images, what their gradients are weighted with, and noise."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(5, 4, 3, 3, dtype=torch.float64, generator=generator) + 0.5 for _ in range(3)]


def noisy(x: Tensor, xi: Tensor) -> Tensor:
    return add_scaled_noise(x, xi, noise_coef=0.3)


def layer_results(share: parallel.Share) -> dict[str, Tensor]:
    """Outputs and input gradients of this share's rows; parameters' gradients and statistics of all."""
    results = {}
    norm = parallel.BatchNorm2d(4).double()
    nn.init.uniform_(norm.weight, 1, 2, generator=torch.Generator().manual_seed(1))
    for copies in (1, 2):
        x, slope, xi = (share.rows(torch.cat([tensor, tensor.square()][:copies])) for tensor in batch())
        for name, layer in {"norm": norm, "noise": lambda x, xi=xi: noisy(x, xi)}.items():
            for layout in (torch.contiguous_format, torch.channels_last):
                point = x.clone(memory_format=layout).requires_grad_()
                with parallel.spread(share):
                    out = layer(point)
                norm.zero_grad()
                (out * slope).sum().backward()
                share.sum_gradients(norm.parameters())
                key = f"{name} {copies} {layout}"
                results |= {f"{key} rows": out.detach(), f"{key} rows slope": point.grad}
                if name == "norm":
                    results |= {f"{key} {n}": p.grad.clone() for n, p in norm.named_parameters() if p.grad is not None}
    return results | {f"norm {n}": b for n, b in norm.named_buffers()}


# Two processes


def work(folder: Path) -> None:
    rank, world = parallel.processes()
    layers = layer_results(parallel.share_of(5))
    checkpoint.save(folder / f"layers-{rank}", layers, kind="layers")
    answers: dict[str, Any] = {}
    for name in CASES:
        result = trained(name, folder / "two" / name)
        answers[name] = [[record.loss, record.val_robust] for record in result.history], result.best_epoch
    model = models.en_resnet(8, num_members=2, in_channels=1, width=4, seed=1)
    once = dataclasses.replace(CONFIG, epochs=1, precision="no")
    train(
        model,
        data.load("digits", num_train=50),
        once,
        on_epoch=lambda model, epoch: model.set_weights([0.25, 0.75] if rank == 0 else [0.5, 0.5]),
    )
    answers["weights set after the epoch"] = model.weights.tolist()
    trained("batch std", folder / "from one")
    trained_in_part("batch std", folder / "to one")
    dataset = data.load("digits", num_test=70)
    model = models.en_resnet(8, num_members=1, in_channels=1, width=4, seed=1)
    x, y = dataset.images(dataset.test.x), dataset.test.y
    score = evaluate.accuracy(model, x, y, num_draws=3, batch_size=16, divided=True)
    answers["evaluation"] = score.predictions.tolist()
    (folder / f"answers-{rank}.json").write_text(json.dumps([world, answers]))


def launched(*command: str) -> subprocess.Popen[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, *launch, *command], env=environment, cwd=ROOT, stdout=pipe, stderr=pipe, text=True
    )


def finished(process: subprocess.Popen[str]) -> str:
    """What a process that succeeds has printed."""
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What two processes left, with all cases trained by one process beside it, in `one`."""
    folder = tmp_path_factory.mktemp("distributed")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for name in CASES:
        trained(name, folder / "one" / name)
    trained_in_part("batch std", folder / "from one")
    output = finished(launched(__file__, str(folder)))
    assert output == ""
    yield folder
    torch.set_num_threads(before)


def largest_difference(first: Any, second: Any) -> float:
    """Between numbers and tensors in the same places of two trees; infinite where anything else differs."""
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        return max((largest_difference(first[key], second[key]) for key in first), default=0.0)
    if isinstance(first, list):
        assert len(first) == len(second)
        return max((largest_difference(a, b) for a, b in zip(first, second, strict=True)), default=0.0)
    if isinstance(first, Tensor) and first.is_floating_point():
        return float((first - second).abs().max())
    if isinstance(first, float):
        return abs(first - second)
    same = torch.equal(first, second) if isinstance(first, Tensor) else first == second
    return 0.0 if same else float("inf")


def assert_same_run(path: Path, other: Path) -> None:
    """Losses, validation, weights, momentum and selection to 1e-10, generators to the bit."""
    trees = [checkpoint.load(file, kind="training") for file in (path, other)]
    for tree in trees:
        for record in tree["history"]:
            record["seconds"] = 0
    for part in ("history", "weights", "optimizer", "best", "generators", "totals", "epoch"):
        assert largest_difference(trees[0][part], trees[1][part]) < 1e-10, part


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_what_one_does(folder: Path, name: str) -> None:
    assert_same_run(folder / "two" / name, folder / "one" / name)


def test_all_processes_know_the_same_losses_and_selected_epoch(folder: Path) -> None:
    first, second = (json.loads((folder / f"answers-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first[0] == 2
    assert first[1]["weights set after the epoch"] == [0.25, 0.75]


@pytest.mark.parametrize("name", ["from one", "to one"])
def test_a_run_passes_from_one_process_to_two_and_back(folder: Path, name: str) -> None:
    if name == "to one":
        assert checkpoint.load(folder / name, kind="training")["step"] == HANDOVER - 3
        trained("batch std", folder / name)
    assert_same_run(folder / name, folder / "one" / "batch std")


def test_a_checkpoint_states_how_its_batches_were_divided(folder: Path) -> None:
    trees = [checkpoint.load(folder / way / "batch std", kind="training") for way in ("one", "two")]
    plans = [tree["provenance"]["batch"] for tree in trees]
    assert plans[0] == {"processes": 1, "per_process": 16, "batch_size": 16, "peak_lr": 0.05}
    assert plans[1] == {"processes": 2, "per_process": 8, "batch_size": 16, "peak_lr": 0.05}


def test_a_divided_evaluation_gives_every_process_the_whole(folder: Path) -> None:
    dataset = data.load("digits", num_test=70)
    model = models.en_resnet(8, num_members=1, in_channels=1, width=4, seed=1)
    score = evaluate.accuracy(model, dataset.images(dataset.test.x), dataset.test.y, num_draws=3, batch_size=16)
    divided = json.loads((folder / "answers-0.json").read_text())[1]["evaluation"]
    assert score.predictions.tolist() == divided
    with pytest.raises(ValueError, match="expected no store for a divided evaluation, got"):
        evaluate.accuracy(model, dataset.images(dataset.test.x), dataset.test.y, store=folder / "x", divided=True)


def test_layers_that_look_at_the_batch_see_the_other_process(folder: Path) -> None:
    whole = layer_results(parallel.WHOLE)
    parts = [checkpoint.load(folder / f"layers-{rank}", kind="layers") for rank in range(2)]
    for key, expected in whole.items():
        for rank, part in enumerate(parts):
            mine = parallel.Share(rank, 2, 5).rows(expected) if "rows" in key else expected
            assert largest_difference(part[key], mine) < 1e-12, key


def test_the_formulas_of_the_shared_batch_norm_are_its_derivatives() -> None:
    # in one process, which alone sees the whole batch: the shared formulas against finite differences
    x, _, xi = batch()
    weight, bias = torch.rand(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) + 0.5
    leaves = tuple(tensor.requires_grad_() for tensor in (x, weight, bias))

    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        var, mean = torch.var_mean(x.detach(), (0, 2, 3), correction=0)
        result: Tensor = parallel._Normalise.apply(x, weight, bias, mean, var, 1e-5, parallel.WHOLE)
        return result

    assert torch.autograd.gradcheck(norm, leaves)
    assert torch.autograd.gradcheck(lambda x: noisy(x, xi), leaves[:1])


def test_rows_of_copies_of_a_batch_are_the_rows_of_each() -> None:
    images = torch.arange(5)
    share = parallel.Share(1, 2, 5)
    assert share.rows(torch.cat([images, 10 + images])).tolist() == [1, 3, 11, 13]
    assert (share.size, share.count(2 * share.size), share.weight) == (2, 10, 0.4)


@pytest.mark.slow
def test_two_processes_do_a_table_between_them(tmp_path: Path) -> None:
    options = ["--smoke", "--num-train", "40", "--num-test", "8", "--device", "cpu", "--out", str(tmp_path)]
    output = finished(launched("studies/table2.py", *options))
    told = [line.split(":")[0] for line in output.splitlines() if line.startswith(("train ", "attack "))]
    assert len(told) == len(set(told)) == 2 + 2 * 4  # each once, by the first of them
    rows = json.loads((tmp_path / "table2-digits-smoke.json").read_text())["rows"]
    assert [list(row["cells"]) for row in rows] == 2 * [["nat", "fgsm", "ifgsm20", "cw"]]
    for path in tmp_path.glob("models/*.safetensors"):
        assert checkpoint.load(path, kind="training")["provenance"]["batch"]["processes"] == 2


if __name__ == "__main__":
    with parallel.joined("cpu"):
        work(Path(sys.argv[1]))
    # All is stored. gloo's threads sometimes abort an interpreter that takes itself apart, which says nothing here.
    sys.stdout.flush()
    os._exit(0)
