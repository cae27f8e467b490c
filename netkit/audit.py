"""The sound evaluation of any model in one call: what fits it is run, and the number to trust is named.

report = audit(model, x, y, eps=8 / 255)
print(report)
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor, nn

from netkit import attacks
from netkit.calibration import Calibration, calibration
from netkit.checks import check_counts, check_positive, check_seed, check_whole, plain
from netkit.evaluate import Attack, Score, checked, worst_case
from netkit.findings import Finding, Row, judge, look_at
from netkit.intervals import Interval
from netkit.progress import progress_bar
from netkit.suite import Budget, Runner, UnfitError, plan

_COLUMNS = 108


@dataclass(frozen=True, repr=False)
class Audit:
    """What a model's accuracies are, which of them to trust, and why. `print` shows the table.

    rows: the clean images and each attack, in the order of their running.
    worst: the worst case of each image over all rows within eps (`netkit.evaluate.worst_case`).
    findings: reasons for doubt. left_out: what was not run, and why.
    calibration: on the clean images.
    """

    rows: tuple[Row, ...]
    worst: Score
    findings: tuple[Finding, ...]
    left_out: tuple[str, ...]
    calibration: Calibration
    eps: float
    norm: attacks.Norm
    budget: Budget
    seed: int
    is_random: bool

    @property
    def is_trusted(self) -> bool:
        """Whether `worst` may be quoted: nothing fatal was found, or nothing but what cannot lower it any more."""
        codes = {finding.code for finding in self.findings if finding.is_fatal}
        if any(finding.code == "undefended" for finding in self.findings):
            codes &= {"batch-dependent"}
        return not codes

    @property
    def verdict(self) -> str:
        """The number to trust and why, in plain sentences."""
        number = _share(self.worst.mean, self.worst.interval)
        if not self.is_trusted:
            fatal = [finding for finding in self.findings if finding.is_fatal]
            bound = f"The worst case found, {number}, is an upper bound at best."
            return f"Do not trust any number here: {_joined(fatal)} {bound}"
        within = [row for row in self.rows if row.kind != "wide"]
        strongest = min(within, key=lambda row: row.score.mean)
        text = f"Trust {number}: the worst case of each image over {len(within) - 1} attacks"
        if self.is_random:
            text += f", picked by half of {self.worst.num_draws} fresh draws and scored by the other half"
        text += f". The strongest alone, {strongest.title}, leaves {strongest.score.mean:.1%}."
        if self.is_random:
            text += f" One draw answers; the vote of {self.worst.num_draws} is right for {self.worst.vote:.1%}."
        return f"{text} But {_joined(self.findings)}" if self.findings else text

    def __str__(self) -> str:
        worst = self.worst
        draws = f", {worst.num_draws} draws each" if self.is_random else ", no randomness"
        lines = [
            f"Audit within eps={self.eps:.4g} ({self.norm}): {worst.n} images{draws}, budget {self.budget!r}, "
            f"seed {self.seed}",
            self._line("", "one draw" if self.is_random else "right", "vote", "EOT", "passes", "seconds"),
        ]
        for row in self.rows:
            passes = f"{row.forward:.0f}+{row.backward:.0f}"
            eot = str(row.eot_draws) if self.is_random and row.eot_draws is not None else ""
            lines.append(self._line(row.title, *self._shares(row.score), eot, passes, f"{row.seconds:.1f}"))
        total = f"{sum(row.seconds for row in self.rows):.1f}"
        lines.append(self._line("worst case of each image", *self._shares(worst), "", "", total))
        of = self.calibration.mean
        lines.append(f"Clean images: ECE {of.ece}, NLL {of.nll}, Brier {of.brier}")
        lines += [f"Left out: {text}" for text in self.left_out]
        lines += [f"Findings: {', '.join(dict.fromkeys(finding.code for finding in self.findings)) or 'none'}"]
        lines += textwrap.wrap(self.verdict, _COLUMNS)
        return "\n".join(line.rstrip() for line in lines)

    def __repr__(self) -> str:
        return f"Audit: {self.verdict}"

    def _shares(self, score: Score) -> tuple[str, str]:
        return _share(score.mean, score.interval), _share(score.vote, score.vote_interval)

    def _line(self, title: str, draw: str, vote: str, eot: str, passes: str, seconds: str) -> str:
        random = f"{vote:21}{eot:>4}" if self.is_random else ""
        return f"{title:38.38} {draw:21}{random} {passes:>11} {seconds:>8}"

    def summary(self) -> dict[str, Any]:
        """All numbers and sentences, for JSON."""
        rows = [
            {field.name: getattr(row, field.name) for field in dataclasses.fields(row) if field.name != "score"}
            | row.score.summary()
            for row in self.rows
        ]
        return {
            "verdict": self.verdict,
            "is_trusted": self.is_trusted,
            "worst": self.worst.summary(),
            "rows": rows,
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "left_out": list(self.left_out),
            "calibration": self.calibration.summary(),
            "is_random": self.is_random,
            **{name: getattr(self, name) for name in ("eps", "norm", "budget", "seed")},
        }


def audit(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float = 8 / 255,
    norm: attacks.Norm = "linf",
    budget: Budget = "standard",
    num_draws: int = 10,
    eot_draws: Sequence[int] | None = None,
    transfer_from: nn.Module | Sequence[nn.Module] = (),
    own_attacks: Mapping[str, Attack] | None = None,
    auto_attack: bool | Literal["auto"] = "auto",
    random: bool | None = None,
    batch_size: int = 250,
    seed: int = 0,
    store: Path | None = None,
    key: str | None = None,
    on_attack: Callable[[Row], None] | None = None,
) -> Audit:
    """Attack `model` in all ways that fit it, and say which number to trust.

    It is looked at first (`netkit.findings`). Then come, each scored on fresh draws: clean images, random noise, FGSM,
    IFGSM, PGD with restarts, PGD on the margin, and a ball so wide that it must erase everything; for a random model
    IFGSM with more and more draws a gradient until more no longer help, the network without noise, with frozen noise,
    and ARC; AutoAttack; transfer from other models; attacks of yours. A step is eps/4. A progress bar is shown where
    standard error is a terminal, unless `on_attack` is given.

    x: (N, C, H, W) floating point in [0, 1]; y: (N,). Some hundred images.
    budget: `"quick"`: 10 steps; `"standard"`: 20 steps, 2 starts; `"full"`: 50 steps, 5 starts, AutoAttack. The table
        says what is left out.
    num_draws: answers for each image of a random model, at least 2. A model that looks fixed gives three, to see so.
    eot_draws: the draws a gradient to try, in order, in place of the budget's.
    transfer_from: models whose adversarial images are tried too.
    own_attacks: attacks of yours by their titles, as `netkit.evaluate.Attack`: they count for the worst case, too, and
        have to stay within eps.
    auto_attack: `"auto"` runs it with `"full"` where it is installed and there are four classes.
    random: whether the model is random; None: `netkit.randomness.is_random` looks.
    store, key: a folder for the scores, from which a later call goes on; as for `netkit.evaluate.robust_accuracy`. With
        a key, an attack of yours is known by its title.
    on_attack: called with each row.

    Everything comes from `seed`. Raises ValueError for wrong input.
    """
    x, y = checked(x, y)
    y = y.long()
    check_counts(batch_size=batch_size)
    if eot_draws is not None:
        if not eot_draws:
            raise ValueError("eot_draws: expected at least one number, got none")
        for draws in eot_draws:
            check_counts(eot_draws=draws)
        eot_draws = [int(draws) for draws in eot_draws]
    check_whole(num_draws=num_draws)
    if num_draws < 2:
        raise ValueError(f"num_draws: expected at least 2, since one half picks an attack, got {num_draws}")
    check_positive(eps=eps)
    eps, seed = plain(eps), check_seed(seed)
    if norm not in get_args(attacks.Norm):
        raise ValueError(f"norm: expected one of {get_args(attacks.Norm)}, got {norm!r}")
    if budget not in get_args(Budget):
        raise ValueError(f"budget: expected one of {get_args(Budget)}, got {budget!r}")
    others = [transfer_from] if isinstance(transfer_from, nn.Module) else list(transfer_from)
    look = look_at(model, x, y, random=random, batch_size=batch_size, seed=seed)
    steps, left_out = plan(
        look, budget, eps, norm, eot_draws=eot_draws, others=others, own=own_attacks, auto_attack=auto_attack
    )
    runner = Runner(
        model,
        x,
        y,
        random=look.is_random,
        num_draws=num_draws,
        eps=eps,
        norm=norm,
        batch_size=batch_size,
        seed=seed,
        store=store,
        key=key,
    )
    with progress_bar("auditing", is_shown=on_attack is None) as report:
        for done, step in enumerate(steps):
            report(done, len(steps))
            try:
                row = runner.run(step)
            except UnfitError as error:
                left_out.append(f"{step.title} ({error})")
                continue
            if row is not None and on_attack is not None:
                on_attack(row)
        measured = calibration(
            model, x, y, num_draws=num_draws, random=look.is_random, batch_size=batch_size, seed=seed
        )
    rows = tuple(runner.rows)
    worst = worst_case([row.score for row in reversed(rows) if row.kind != "wide"])  # of equals the strongest
    findings = (*look.findings, *judge(rows, worst, look, random=look.is_random))
    return Audit(rows, worst, findings, tuple(left_out), measured, eps, norm, budget, seed, look.is_random)


def _joined(findings: Sequence[Finding]) -> str:
    """The messages as sentences, the first one to stand behind other words."""
    first, *others = (finding.message for finding in findings)
    return " ".join(f"{message}." for message in (first, *(other[0].upper() + other[1:] for other in others)))


def _share(share: float, interval: Interval) -> str:
    return f"{100 * share:.1f}% [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
