"""The command `itoflow`: every study by its name, and two checks of what is one's own.

A study brings its options, and its results go to ./out. Nothing but the standard library is imported until it is known
what is to run: `itoflow --help` works in any installation, at once.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import io
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

_FIGURES = ("typer", "matplotlib")
_NETKIT = ("torch", "torchvision", "safetensors", "sklearn")
REQUIRED = {"": (), "figures": _FIGURES, "netkit": _NETKIT, "studies": (*_FIGURES, *_NETKIT, "jinja2")}
"""The packages that an extra of this one brings."""


@dataclass(frozen=True)
class Command:
    """A line of the help, the module that does it, and the extra of the package that brings what it needs, if any."""

    says: str
    module: str
    extra: str = "studies"


CHECKS = {
    "verify": Command("solve an equation of your own, and check it against its paths", "studies.cli.verify", ""),
    "audit": Command("attack a network of your own in all ways that fit it", "studies.cli.audit", "netkit"),
}
STUDIES = {
    "fig4": Command("Figure 4: diffusion makes level sets regular", "studies.fig4_diffusion", "figures"),
    "theorems": Command("Theorems 1 and 2: where each bound holds", "studies.theorems", "figures"),
    "neural-pde": Command("a trained network against its own equation", "studies.neural_pde"),
    "control": Command("training as a problem of control", "studies.control"),
    "noise-scale": Command("one constant σ in place of the paper's noise", "studies.noise_scale"),
    "error-bars": Command("how far answers of published networks depend on noise", "studies.error_bars"),
    "multilevel": Command("the same estimate by multilevel Monte Carlo", "studies.multilevel", "figures"),
    "random-attacks": Command("attacks that take a noisy network as what it is", "studies.random_attacks"),
    "smoothing": Command("certified accuracy beside attacked accuracy", "studies.smoothing"),
    "interactive": Command("a page with sliders: an ensemble approaches its equation", "studies.interactive"),
    "certify": Command("what is promised of the numbers, measured", "studies.certify"),
    "work-precision": Command("seconds to an error, beside other programs", "studies.work_precision", "figures"),
    "table": Command("a table of the paper by its number, or section4_4", "studies.table"),
    "fig5": Command("Figure 5: accuracy over the epochs", "studies.fig5_training_curves"),
    "fig6": Command("Figure 6: adversarial images", "studies.fig6_adversarial_images"),
    "reproduce": Command("Tables 1, 2 and 5 on CIFAR, most valuable first", "studies.reproduce"),
    "publish": Command("weights and model cards of what reproduce has trained", "studies.publish"),
    "report": Command("the stored results as one page", "studies.report"),
}
COMMANDS = CHECKS | STUDIES


class CommandError(Exception):
    """What a command line asks for cannot be done; its message says why and what helps, in one line."""


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code, which is 2 wherever something was wrong with the question."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not every locale has the Greek letters of the help
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _answer(sys.argv[1:] if words is None else words)
        sys.stdout.flush()
    except CommandError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception:
        traceback.print_exc()
        return 2  # 1 is an answer
    return code


def _answer(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else 2
    name, *options = words
    if name == "--version":
        print(f"itoflow {_version()}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise CommandError(f"expected one of {', '.join(COMMANDS)}, got {name!r}{meant}")
    command = COMMANDS[name]
    for package in REQUIRED[command.extra]:
        # now: a study would find out when it draws what it has computed
        if importlib.util.find_spec(package) is None:
            cure = f'pip install "itoflow[{command.extra}]"'
            raise CommandError(f"itoflow {name} needs {package}, which is not installed: {cure}")
    module = importlib.import_module(command.module)
    return int(module.main(options)) if name in CHECKS else _study(module, name, options)


def usage() -> str:
    """The help."""
    lines = ["itoflow COMMAND [OPTIONS]: `itoflow COMMAND --help` lists the options of a command.", ""]
    for title, commands in (("Checks of your own", CHECKS), ("Studies of the paper, into ./out", STUDIES)):
        lines += [f"{title}:", *(f"  {name:<15} {command.says}" for name, command in commands.items()), ""]
    return "\n".join([*lines, "itoflow --version says which version this is."])


def _study(module: ModuleType, name: str, options: Sequence[str]) -> int:
    import typer  # not in every installation

    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command()(module.main)
    app(options, prog_name=f"itoflow {name}")  # which ends with SystemExit
    return 0


def _version() -> str:
    import importlib.metadata  # a third of the time of the help

    try:
        return importlib.metadata.version("itoflow")
    except importlib.metadata.PackageNotFoundError:
        return "unknown: not installed"
