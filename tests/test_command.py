"""The command `itoflow`: what it runs, prints and returns, and where results go. Runs from a clone and from a wheel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import studies
from studies import cli

PROBLEM = """
import numpy as np
from pdekit import ConvectionDiffusion

def made(sigma):
    return ConvectionDiffusion(velocity, lambda x: np.cos(2 * np.pi * x[..., 0]), sigma=sigma)

velocity = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8))
problem = made(0.3)
smooth = lambda: made(0.3)
number = 3
anywhere = ConvectionDiffusion(lambda x, t: 0 * x, lambda x: x[..., 0], 0.3, dim=2, domain="space")

def fails():
    return 1 / 0
"""
MODEL = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def nothing():
    return None
"""
FOLDER = Path(studies.__file__).parent


def run(*words: str, cwd: Path, code: str = "import sys; from studies.cli import main; sys.exit(main())") -> Any:
    return subprocess.run([sys.executable, "-c", code, *words], cwd=cwd, capture_output=True, text=True, check=False)


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a command."""
    try:
        code = cli.main(words)
    except SystemExit as ended:
        code = int(ended.code or 0)
    return code, *capsys.readouterr()


# The command itself


def test_a_locale_without_greek_letters_gets_the_help(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii:strict"}
    command = [sys.executable, "-c", "import sys; from studies.cli import main; sys.exit(main(['--help']))"]
    made = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert (made.returncode, made.stderr) == (0, b"")
    assert b"one constant \\u03c3 in place" in made.stdout


def test_help_imports_nothing_heavy(tmp_path):
    code = (
        "import sys, studies.cli; studies.cli.main(['--help']); "
        "print(*sorted({'numpy', 'numba', 'torch', 'typer', 'rich', 'xarray', 'scipy', 'pdekit'} & sys.modules.keys()))"
    )
    found = run(cwd=tmp_path, code=code).stdout.splitlines()
    assert found[-1] == ""
    for name in cli.COMMANDS:
        assert any(line.startswith(f"  {name} ") for line in found)


def test_every_script_is_a_command():
    """But for table2.py, which is `itoflow table 2`."""
    scripts = {path.stem for path in FOLDER.glob("*.py") if "__main__" in path.read_text()}
    assert {command.module.removeprefix("studies.") for command in cli.STUDIES.values()} == scripts - {"table2"}


def test_no_command_or_another_one(capsys):
    code, out, _ = answer(capsys)
    assert (code, "COMMAND" in out) == (2, True)
    code, _, error = answer(capsys, "tabel", "2")
    assert code == 2
    assert error.startswith("error: expected one of verify, audit, fig4, ")
    assert error.endswith("got 'tabel'; did you mean table?\n")


def test_version(capsys):
    from importlib.metadata import version

    assert answer(capsys, "--version") == (0, f"itoflow {version('itoflow')}\n", "")


@pytest.mark.parametrize(
    ("command", "missing", "extra"),
    [
        (["fig4", "--smoke"], "typer", "figures"),
        (["theorems"], "matplotlib", "figures"),
        (["table", "2"], "torch", "studies"),
        (["report"], "jinja2", "studies"),
        (["audit", "model.py:make", "--data", "d.npz"], "torch", "netkit"),
    ],
)
def test_a_missing_extra_is_named_in_one_line(command, missing, extra, tmp_path):
    code = f"import sys; sys.modules[{missing!r}] = None; from studies.cli import main; sys.exit(main())"
    ended = run(*command, cwd=tmp_path, code=code)
    assert ended.returncode == 2
    assert ended.stderr == (
        f'error: itoflow {command[0]} needs {missing}, which is not installed: pip install "itoflow[{extra}]"\n'
    )


def test_a_reader_that_has_enough_is_no_error(tmp_path):
    command = [sys.executable, "-m", "studies.cli", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


# itoflow verify


@pytest.fixture
def problem(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "problem", raising=False)
    (tmp_path / "problem.py").write_text(PROBLEM)
    return tmp_path / "problem.py"


def test_a_right_solution_agrees_with_its_paths(problem, capsys):
    code, out, error = answer(capsys, "verify", "problem.py", "--num-points", "32", "--points", "16")
    assert (code, error) == (0, "")
    made, verdict = out.splitlines()
    assert made.startswith("solution: spectral_krylov, 32 x 32 nodes")
    assert verdict.startswith("Verification: agrees; ")


@pytest.mark.parametrize("name", ["problem.py:problem", "problem.py:smooth", "problem", "problem:smooth"])
def test_a_problem_is_named_by_its_file_or_module(name, problem, capsys):
    code, _, error = answer(capsys, "verify", name, "--num-points", "2")
    assert (code, error) == (2, "error: num_points: expected a whole number of at least 8, got 2\n")


def test_few_paths_decide_nothing(problem, capsys):
    few = ["--points", "2", "--num-paths", "16", "--num-steps", "4", "--num-points", "32", "--resolves", "1e-6"]
    code, out, _ = answer(capsys, "verify", "problem.py", *few)
    assert code == 2
    assert "Verification: inconclusive; " in out


def test_the_solution_of_another_equation_disagrees(problem, capsys):
    from pdekit import solve

    names: dict[str, Any] = {}
    exec(PROBLEM, names)
    times = np.linspace(0, 1, 5).tolist()
    solve(names["made"](0.34), num_points=32, times=times).to_netcdf("u.nc", engine="h5netcdf")
    stored = Path("u.nc").read_bytes()
    code, out, _ = answer(capsys, "verify", "problem.py", "--solution", "u.nc", "--points", "16")
    assert code == 1
    assert "Verification: disagrees; " in out
    assert Path("u.nc").read_bytes() == stored
    assert answer(capsys, "verify", "problem.py", "--solution", "u.nc", "--dt", "0.1")[0] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent.py"], "error: expected a file of Python, got no file absent.py"),
        (["no such"], "error: expected problem.py, problem.py:NAME or module:NAME, got 'no such'"),
        (["absent_module:problem"], "error: absent_module: "),
        (["problem.py:other"], "error: problem.py: expected a 'other', got np, ConvectionDiffusion, made, velocity, "),
        (["problem.py:number"], "error: problem.py:number: expected a pdekit.ConvectionDiffusion, got int"),
        (["problem.py:fails"], "error: problem.py:fails: problem.py, line 15: ZeroDivisionError: division by zero"),
        (["problem.py:anywhere"], "error: problem.py:anywhere: expected a problem on a box"),
        (["problem.py", "--num-points", "-3"], "error: num_points: expected a whole number of at least 8, got -3"),
        (["problem.py", "--points", "0"], "error: --points: expected at least 1, got 0"),
        (["problem.py", "--seed", "-1"], "error: --seed: expected at least 0, got -1"),
        (["problem.py", "--solution", "absent.nc"], "error: --solution: expected a NetCDF-4 file, got absent.nc: "),
        (["problem.py", "--solution", "problem.py"], "error: --solution: expected a NetCDF-4 file, got problem.py: "),
        (["problem.py", "--solution", "."], "error: --solution: expected a NetCDF-4 file, got .: a folder"),
    ],
)
def test_a_wrong_question_is_answered_in_one_line(words, message, problem, capsys):
    code, out, error = answer(capsys, "verify", *words)
    assert (code, out) == (2, "")
    assert error.startswith(message)
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("source", "message"), [("x = (", "line 1: SyntaxError"), ("\nx = y", "broken.py, line 2: NameError: name 'y'")]
)
def test_a_broken_file_is_named_with_its_line(source, message, problem, capsys):
    Path("broken.py").write_text(source)
    code, _, error = answer(capsys, "verify", "broken.py")
    assert code == 2
    assert error.startswith(f"error: broken.py: {message}")


def test_an_error_in_the_users_functions_is_no_disagreement(problem, capsys):
    Path("late.py").write_text(PROBLEM.replace("np.cos(2 * np.pi * x[..., 0])", "absent"))
    code, _, error = answer(capsys, "verify", "late.py")
    assert code == 2
    assert "NameError: name 'absent' is not defined" in error


# itoflow audit


@pytest.fixture
def audited(tmp_path, monkeypatch) -> list[dict[str, Any]]:
    """A folder with a model and images; the calls of a `netkit.audit` that answers at once."""
    calls: list[dict[str, Any]] = []

    class Report:
        is_trusted = True

        def __str__(self) -> str:
            return "the table"

        def summary(self) -> dict[str, Any]:
            return {"verdict": "Trust it"}

    def audit(model: Any, x: Any, y: Any, **told: Any) -> Report:
        calls.append({"model": model, "x": x, "y": y, **told})
        report = Report()
        report.is_trusted = told["budget"] != "quick"
        return report

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "model", raising=False)
    monkeypatch.setattr("studies.cli.audit.audit", audit)
    (tmp_path / "model.py").write_text(MODEL)
    rng = np.random.default_rng(0)
    arrays = {"x": rng.integers(0, 256, (12, 8, 8, 1), np.uint8), "y": np.arange(12) % 10}
    np.savez(tmp_path / "d.npz", **arrays)
    np.savez(tmp_path / "other.npz", images=arrays["x"])
    return calls


def test_audit_hands_on_the_network_the_images_and_the_options(audited, capsys):
    words = ["audit", "model.py:make", "--data", "d.npz", "--eps", "8/255", "--num-images", "7", "--json", "r.json"]
    assert answer(capsys, *words) == (0, "the table\n", "")
    (call,) = audited
    assert call["x"].shape == (7, 1, 8, 8)
    assert float(call["x"].max()) <= 1.0 < 255 * float(call["x"].max())
    assert call["y"].tolist() == list(range(7))
    assert call["eps"] == pytest.approx(8 / 255)
    assert (call["norm"], call["budget"], call["seed"], call["store"]) == ("linf", "standard", 0, None)
    assert not call["model"].training
    assert json.loads(Path("r.json").read_text()) == {"verdict": "Trust it"}
    assert answer(capsys, "audit", "model.py", "--data", "d.npz", "--budget", "quick")[0] == 1


def test_audit_takes_weights_of_any_safe_kind(audited, capsys):
    import safetensors.torch
    import torch
    from torch import nn

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    torch.save(model.state_dict(), "plain.pt")
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, "nested.pth")
    safetensors.torch.save_file(model.state_dict(), "w.safetensors")
    for name in ("plain.pt", "nested.pth", "w.safetensors"):
        assert answer(capsys, "audit", "model.py", "--data", "d.npz", "--weights", name)[0] == 0
        assert torch.equal(audited[-1]["model"][1].weight, model[1].weight)


def test_audit_takes_a_checkpoint_of_netkit(audited, capsys):
    import torch

    import netkit

    digits = netkit.load("digits", num_train=40, num_test=10)
    trained = netkit.from_name("ResNet8", in_channels=1, width=2)
    netkit.train(trained, digits, netkit.PRESETS["digits"], epochs=1, path=Path("run.safetensors"))
    make = "return netkit.from_name('ResNet8', in_channels=1, width=2)"
    Path("small.py").write_text(f"import netkit\ndef make():\n    {make}")
    words = ["audit", "small.py", "--data", "d.npz", "--weights", "run.safetensors"]
    code, _, error = answer(capsys, *words)
    assert (code, error) == (0, "")
    expected = netkit.load_model(Path("run.safetensors")).state_dict()
    found = audited[-1]["model"].state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


class Trap:
    """Leaves a file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("sprung",)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--weights", "absent.pt"], "error: --weights: no such file: absent.pt"),
        (["--weights", "trap.pt"], "error: trap.pt holds more than tensors, which could run code, or is damaged: "),
        (["--weights", "junk.pt"], "error: junk.pt holds more than tensors, which could run code, or is damaged: "),
        (["--weights", "junk.safetensors"], "error: junk.safetensors is damaged, or not a safetensors file: "),
        (["--weights", "list.pt"], "error: list.pt: expected a state_dict, tensors by their names, got list"),
        (["--weights", "wide.pt"], "error: Error(s) in loading state_dict"),
        (["--data", "other.npz"], "error: other.npz: expected x_test and y_test, or x and y, got neither"),
        (["--data", "absent.npz"], "error: no such data file: absent.npz"),
        (["--data", "absent"], "error: no such folder of images: absent"),
        (["--num-images", "0"], "error: --num-images: expected at least 1, got 0"),
    ],
)
def test_what_cannot_be_audited_is_named_in_one_line(words, message, audited, capsys):
    import torch
    from torch import nn

    torch.save({"weight": Trap()}, "trap.pt")
    torch.save([torch.zeros(1)], "list.pt")
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 11)).state_dict(), "wide.pt")
    Path("junk.pt").write_bytes(b"junk")
    Path("junk.safetensors").write_bytes(b"junk")
    code, _, error = answer(capsys, "audit", "model.py", "--data", "d.npz", *words)
    assert code == 2
    assert error.startswith(message)
    assert error.count("\n") == 1
    assert not Path("sprung").exists()
    assert audited == []


def test_audit_needs_a_network(audited, capsys):
    _, _, error = answer(capsys, "audit", "model.py:nothing", "--data", "d.npz")
    assert error == "error: model.py:nothing: expected a torch.nn.Module or a function that makes one, got NoneType\n"
    for eps in ("x", "8/0", "1e400", "1e999999999", "nan", f"1{'0' * 400}/1"):
        assert answer(capsys, "audit", "model.py", "--data", "d.npz", "--eps", eps)[0] == 2


# The studies


@pytest.mark.slow
def test_studies_run_in_an_empty_folder_and_leave_their_results_there(tmp_path):
    before = {path for path in FOLDER.rglob("*") if "__pycache__" not in path.parts}
    (tmp_path / "README.md").write_text("<!-- results: written by make report -->\n<!-- end of results -->\n")
    for words in (
        ["fig4", "--smoke"],
        ["table", "2", "--smoke"],
        ["theorems", "--smoke", "--workers", "2"],
        ["report", "--readme", "README.md"],
    ):
        ended = run(*words, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
    out = tmp_path / "out"
    for name in ("fig4/fig4.png", "table2-digits-smoke.json", "theorems/theorems.json", "report.html"):
        assert (out / name).stat().st_size > 0, name
    stamp = json.loads((out / "fig4" / "fig4.json").read_text())["provenance"]
    assert stamp["command"].endswith("fig4 --smoke") or stamp["command"] == "-c fig4 --smoke"
    assert {path for path in FOLDER.rglob("*") if "__pycache__" not in path.parts} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "out"]


def test_every_study_writes_to_where_one_is(tmp_path: Path) -> None:
    """Beside an installed copy there is no folder of one's own: it lies among the packages."""
    code = (
        "import importlib, inspect\nfrom pathlib import Path\nfrom studies import cli\n"
        "for name in cli.STUDIES:\n"
        "    module = importlib.import_module(cli.STUDIES[name].module)\n"
        "    for option, given in inspect.signature(getattr(module, 'main', print)).parameters.items():\n"
        "        if option == 'out' and not Path(given.default).is_relative_to(Path.cwd()):\n"
        "            print(name, given.default)\n"
    )
    assert run(cwd=tmp_path, code=code).stdout == ""
