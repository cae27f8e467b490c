"""One training by one process and by several: the same losses, step by step?

The network and the data are those of Table 2. Without arguments: digits, double precision, one process against two.
--dataset cifar10 --data FILE.npz --num-train 5000 is the full comparison.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from jobs import Settings, load_data, network
from reporting import ROOT, InputError, console, num_cores, one_line_errors, provenance, write_json
from rich.table import Table
from tables import require

from netkit import checkpoint, parallel
from netkit.data import DataError
from netkit.training import TrainConfig, train


def main(
    dataset: Annotated[str, typer.Option(help="digits, cifar10 or cifar100")] = "digits",
    data: Annotated[Path | None, typer.Option(help=".npz file, or folder with the official CIFAR files")] = None,
    model: Annotated[str | None, typer.Option(help="Default: En2ResNet20, on digits En2ResNet8")] = None,
    preset: Annotated[str, typer.Option(help="Of the training")] = "fast",
    double: Annotated[bool, typer.Option("--double/--single", help="Precision of the training")] = True,
    num_train: Annotated[int | None, typer.Option(help="Only the first N images")] = None,
    epochs: Annotated[int, typer.Option()] = 1,
    attack_steps: Annotated[int, typer.Option()] = 1,
    num_processes: Annotated[int, typer.Option(help="To compare with one process")] = 2,
    out: Annotated[Path, typer.Option(help="Folder for the result")] = ROOT / "out",
    worker: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Train with one process and with several, and compare the loss of every step."""
    with one_line_errors((InputError, DataError, OSError), (RuntimeError,)):
        require(1, epochs=epochs, attack_steps=attack_steps, num_processes=num_processes)
        require(2, num_train=num_train)
        name = model or ("En2ResNet8" if dataset == "digits" else "En2ResNet20")
        options: dict[str, Any] = {"num_train": num_train, "epochs": epochs, "attack_steps": attack_steps}
        settings = Settings(dataset, preset, out, data=data, **options)
        config = replace(settings.train_config(seed=0, loss="pgd"), precision="fp64" if double else "no")
        if worker is not None:
            _train(name, settings, config, worker)
            return
        with TemporaryDirectory() as folder:
            runs = [_launched(count, Path(folder) / f"{count}.json") for count in (1, num_processes)]
        result = {
            "provenance": provenance({"model": name, "training": asdict(config)}),
            "runs": runs,
            "largest_difference": max(abs(a - b) for a, b in zip(runs[0]["losses"], runs[1]["losses"], strict=True)),
        }
        path = out / f"processes-{dataset}-{'double' if double else 'single'}.json"
        write_json(path, result)
        _draw(path)


def _launched(num_processes: int, answer: Path) -> dict[str, Any]:
    """What this script answers as a worker, in `num_processes` processes that share the cores."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    threads = max(1, num_cores() // num_processes)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [*launch, __file__, *sys.argv[1:], "--worker", str(answer)]
    if subprocess.run(command, env=environment).returncode != 0:
        raise RuntimeError(f"a training with {num_processes} processes failed")
    run: dict[str, Any] = json.loads(answer.read_text())
    return run


def _train(name: str, settings: Settings, config: TrainConfig, answer: Path) -> None:
    """Train, and let the first process write the loss of every step, over the whole batch, to `answer`."""
    dataset = load_data(settings)
    num_images = len(dataset.train) + (0 if config.hold_out else len(dataset.val))
    path = answer.with_suffix(".safetensors")
    losses: list[float] = []
    before = (0.0, 0.0)

    def note(done: int, total: int) -> None:
        nonlocal before
        rank, _ = parallel.processes()
        if done == 0 or rank > 0:
            return
        # the checkpoint holds sums of losses and images over the epoch; at its end only their ratio is left
        tree = checkpoint.load(path, kind="training")
        loss, _, count = tree["totals"].tolist()
        if is_end := tree["step"] == 0:
            loss, count = tree["history"][-1]["loss"] * num_images, num_images
        losses.append((loss - before[0]) / (count - before[1]))
        before = (0.0, 0.0) if is_end else (loss, count)
        print(f"step {done} of {total}: loss {losses[-1]:.12f}", flush=True)

    with parallel.joined("cpu"):
        train(network(name, settings, seed=0), dataset, config, path=path, checkpoint_steps=1, on_step=note)
        rank, _ = parallel.processes()
        if rank == 0:
            plan = checkpoint.load(path, kind="training")["provenance"]["batch"]
            write_json(answer, {"batch": plan, "threads": torch.get_num_threads(), "losses": losses})


def _draw(path: Path) -> None:
    stored = json.loads(path.read_text())
    plans = [run["batch"] for run in stored["runs"]]
    titles = [f"{plan['processes']} x {plan['per_process']} images" for plan in plans]
    table = Table("step", *titles, "difference")
    for step, (one, several) in enumerate(zip(*(run["losses"] for run in stored["runs"]), strict=True), start=1):
        table.add_row(str(step), f"{one:.12f}", f"{several:.12f}", f"{several - one:+.1e}")
    console.print(table)
    console.print(
        f"largest difference {stored['largest_difference']:.1e}; batches of {plans[0]['batch_size']} images, "
        f"peak learning rate {plans[0]['peak_lr']:g}; written to {path}",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    typer.run(main)
