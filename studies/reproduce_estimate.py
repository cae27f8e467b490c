"""How long the jobs of the reproduction would take on this device, from a few training steps of each network."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jobs import Job, Settings, TrainTask, describe, gradients_per_image, is_noisy, load_data, network
from reporting import console
from reproduce_queue import Entry

from netkit.training import train


def estimate(entries: Sequence[Entry], num_workers: int, num_threads: int) -> None:
    """Print for every job what it would take, from a few training steps of each network measured here and now."""
    torch.set_num_threads(num_threads)
    measured: dict[tuple[Any, ...], float] = {}
    total = 0.0
    for entry in entries:
        task, settings = entry.job.task, entry.job.settings
        if entry.job.is_done():
            console.print(
                f"{'done':>10}  {total / 60:8.1f} min  {entry.setting}: {task}", highlight=False, soft_wrap=True
            )
            continue
        key = (task.model, settings.dataset, settings.preset, settings.width)
        if key not in measured:
            measured[key] = seconds_per_gradient(task.model, settings)
        seconds = measured[key] * passes(entry.job)
        total += seconds / num_workers
        line = f"{seconds:8.0f} s  {total / 60:8.1f} min  {entry.setting}: {task}"
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"{total / 60:.0f} minutes in all with {num_workers} processes, as busy as this device is now")


class _Measured(Exception):
    pass


def seconds_per_gradient(model: str, settings: Settings) -> float:
    """Seconds that `model` takes for one image forward and back, in training steps against one attack step."""
    dataset = load_data(settings)
    _, size = describe(model, settings)
    is_long = settings.device == "cpu" and size > 2_000_000
    config = settings.train_config(0, "pgd")
    config = replace(config, epochs=10, num_steps=1, batch_size=8 if is_long else 128, select="last")
    times: list[float] = []

    def count(done: int, total: int) -> None:
        if settings.device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter())
        if len(times) == 5:  # before the first step, after a warm-up, and three to measure
            raise _Measured

    with contextlib.suppress(_Measured):
        train(network(model, settings, 0), dataset, config, on_step=count)
    images = min(config.batch_size, len(dataset.train))
    return (times[-1] - times[1]) / (len(times) - 2) / images / 2


def passes(job: Job) -> float:
    """Passes forward and back, over one image, that a job takes; a pass forward alone counts a third."""
    task, settings = job.task, job.settings
    dataset = load_data(settings)
    if isinstance(task, TrainTask):
        config = settings.train_config(task.seed, task.loss)
        attacked = 0 if config.loss == "natural" else config.num_steps
        validated = 0 if config.loss == "natural" else config.val_num_steps
        validations = math.ceil(config.epochs / config.validate_every)
        return config.epochs * len(dataset.train) * (attacked + 1) + validations * len(dataset.val) * (
            validated + 2 / 3
        )
    noisy = is_noisy(task.model)
    draws = settings.num_draws if noisy else 1
    return len(dataset.test) * (gradients_per_image(task.column, settings, is_noisy=noisy) + draws / 3)
