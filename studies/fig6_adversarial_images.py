"""Figure 6: images, what IFGSM and C&W make of them, and what the attacked networks then see.

The networks are ResNet20 and En5ResNet20 of Table 2, trained here only where that table has not done so. The images are
the first of the test set, one a class, that both networks get right while they are clean: a rule that does not look at
the attacks. Without arguments: 8x8 digits. The paper's own images: --dataset cifar10 --data FILE.npz.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from netkit.evaluate import through_eot
from netkit.models import EnResNet
from netkit.randomness import derived_generator, noise_from
from pdekit.runtime.files import write_whole
from studies.draw.style import save, styled
from studies.lab.cli import Computed, app_for
from studies.lab.reporting import console, provenance, write_json
from studies.lab.tasks import Scoring, tasks_for
from studies.lab.work import load_data, trained_model
from studies.paper.tables import FIGURE6

NUM_IMAGES = 4
_ATTACKS = ("ifgsm20", "cw")
_LOOKED_AT = 500


def finish(computed: Computed) -> None:
    images, stored = compute(computed)
    pixels = io.BytesIO()
    np.savez(pixels, **images)
    write_whole(computed.path.with_suffix(".npz"), pixels.getvalue())
    write_json(computed.path, stored)
    draw(computed.path)
    console.print(f"written to {computed.path}, with .npz, .png and .pdf beside it", highlight=False, soft_wrap=True)


def compute(computed: Computed) -> tuple[dict[str, Any], dict[str, Any]]:
    """Images (NUM_IMAGES, H, W, C) by column, and for each what the network takes them for, fit for JSON."""
    settings, seed = computed.settings, computed.seeds[0]
    dataset = load_data(settings)
    networks, attacks = {}, {}
    for row in computed.rows:
        network = row.network.on(settings.dataset)
        tasks = tasks_for(settings, network, seed, _ATTACKS, loss="pgd")
        attacks[network.name] = [task for task in tasks if isinstance(task, Scoring)]
        networks[network.name] = trained_model(attacks[network.name][0], network)
    x, y = dataset.images(dataset.test.x[:_LOOKED_AT]), dataset.test.y[:_LOOKED_AT]
    are_right = torch.stack([_votes(net, x, settings.num_draws, seed)[0] == y for net in networks.values()]).all(0)
    if not are_right.any():
        console.print(f"the networks are not both right on any of {len(x)} clean images: the first of them are drawn")
    first: dict[int, int] = {}
    for index in (are_right if are_right.any() else ~are_right).nonzero()[:, 0].tolist():
        first.setdefault(int(y[index]), index)
    chosen = list(first.values())[:NUM_IMAGES]
    x, y = x[chosen], y[chosen]
    images: dict[str, Any] = {"original": _as_pictures(x)}
    columns: list[dict[str, Any]] = []
    for name, net in networks.items():
        for task in attacks[name]:
            x_adv = _attacked(task, net, x, y)
            votes, shares = _votes(net, x_adv, settings.num_draws, seed)
            key = f"{name} {task.attack}"
            images[key] = _as_pictures(x_adv)
            columns.append(
                {
                    "key": key,
                    "network": name,
                    "attack": task.title,
                    "largest_change": float((x_adv - x).abs().max()),
                    "predicted": [dataset.classes[label] for label in votes.tolist()],
                    "share_of_draws": shares.tolist(),
                }
            )
    config = {"dataset": settings.dataset, "preset": settings.preset, "seed": seed, "num_draws": settings.num_draws}
    stored = {
        "provenance": provenance(config, device=settings.device),
        "dataset": settings.dataset,
        "indices": chosen,
        "right_while_clean": bool(are_right[chosen].all()),
        "labels": [dataset.classes[label] for label in y.tolist()],
        "columns": columns,
    }
    return images, stored


def _attacked(task: Scoring, model: EnResNet, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    assert task.row.make is not None
    attack = task.row.make(task.settings.strength, task.num_steps, task.eot_draws)
    with noise_from(derived_generator(x.device, task.seed, task.attack), model):
        return through_eot(model, x, y, attack=attack, eot_draws=task.eot_draws)


def _votes(model: EnResNet, x: torch.Tensor, num_draws: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The plurality (B,) over noise draws, and the share of draws that agree with it."""
    with torch.no_grad(), noise_from(derived_generator(x.device, seed, "votes"), model):
        predictions = torch.stack([model(x).argmax(1) for _ in range(num_draws)])
    votes = predictions.mode(0).values
    return votes, (predictions == votes).double().mean(0)


def _as_pictures(x: torch.Tensor) -> NDArray[np.float32]:
    return x.permute(0, 2, 3, 1).cpu().numpy().astype(np.float32)


def draw(path: Path) -> None:
    """Draw the images beside `path` as a PNG and a PDF; reads the two stored files and nothing else."""
    stored = json.loads(path.read_text())
    with np.load(path.with_suffix(".npz")) as images:
        pictures = {key: images[key] for key in images}
    labels, columns = stored["labels"], stored["columns"]
    with styled({"font.size": 8, "axes.titlesize": 8}):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(1.35 * (1 + len(columns)), 0.75 + 1.5 * len(labels)), layout="constrained")
        grid = figure.subplots(len(labels), 1 + len(columns), squeeze=False)
        grid[0, 0].set_title("original\n")
        for axes, column in zip(grid[0, 1:], columns, strict=True):
            axes.set_title(f"{column['attack']} on\n{column['network']}\n|δ| ≤ {column['largest_change']:.3f}")
        for row, label in enumerate(labels):
            _show(grid[row, 0], pictures["original"][row], label, "black")
            for axes, column in zip(grid[row, 1:], columns, strict=True):
                predicted, share = column["predicted"][row], column["share_of_draws"][row]
                text = predicted if share == 1 else f"{predicted} ({100 * share:.0f}%)"
                _show(axes, pictures[column["key"]][row], text, "#0072b2" if predicted == label else "#d55e00")
        figure.supxlabel(
            "Below: what the attacked network takes an image for (blue: right, orange: wrong),\n"
            "with the share of noise draws where they disagree.",
            fontsize=7,
        )
        save(figure, path, dpi=300)


def _show(axes: Any, picture: NDArray[np.float32], text: str, colour: str) -> None:
    axes.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(text, color=colour, labelpad=2)
    for spine in axes.spines.values():
        spine.set_linewidth(0.4)


app = app_for(FIGURE6, finish)

if __name__ == "__main__":
    app()
