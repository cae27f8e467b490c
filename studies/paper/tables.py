"""Tables 1 to 10, section 4.4 and Figures 5 and 6 of the paper: which networks, which attacks, what is claimed.

The paper's numbers are in numbers.json. Rows that it does not have are controls: what does averaging do without noise
(Plain), and what does size do without either (Wide).
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from studies.lab.declared import Claim, Row, Table

NUMBERS = json.loads((Path(__file__).parent / "numbers.json").read_text())["tables"]

WHITE_BOX = ("nat", "fgsm", "ifgsm20", "cw")
BLIND = ("fgsm", "ifgsm20", "cw")

_table = partial(Table, attacks=WHITE_BOX, printed=NUMBERS)


def rows(*names: str, **options: Any) -> tuple[Row, ...]:
    return tuple(Row(name, **options) for name in names)


_PLAIN2 = Row("Plain2ResNet20", paper=("section4_4", "2xResNet20 no noise, joint"))
_PAPER_APART = ("section4_4", "2xResNet20 no noise, separate")
_JOINT = "En1ResNet20&En1ResNet32"


def _from(table: str, *names: str) -> tuple[Row, ...]:
    """Rows whose numbers another table of the paper has."""
    return tuple(Row(name, paper=(table, name)) for name in names)


TABLE1 = _table(
    "table1",
    "Natural accuracy, naturally trained",
    rows("ResNet20", "En1ResNet20", "En2ResNet20", "En5ResNet20", "ResNet44", "En1ResNet44", "En2ResNet44")
    + rows("ResNet110", "En2ResNet110", "Plain2ResNet20", "Plain5ResNet20", "Wide5ResNet20"),
    attacks=("nat",),
    loss="natural",
)
TABLE2 = _table(
    "table2",
    "Natural and robust accuracy, PGD adversarially trained, white-box",
    rows("ResNet20", "En1ResNet20", "En2ResNet20", "En5ResNet20", "ResNet44", "En1ResNet44", "En2ResNet44")
    + rows("ResNet110", "En2ResNet110", "En1WideResNet34-10")
    + (_PLAIN2, *rows("Plain5ResNet20", "Wide5ResNet20"))
    # is noise of two points, which is much cheaper to draw, as good
    + rows("TwoPoint2ResNet20", "TwoPoint5ResNet20")
    # baselines: noise that is trained (He et al. 2019), members trained apart, noise on the input (Cohen et al. 2019)
    + (Row("Pni2ResNet20"), Row("Sep2ResNet20", paper=_PAPER_APART), Row("Smooth0.25ResNet20")),
    on_request=(
        *("TwoPoint2ResNet20", "TwoPoint5ResNet20"),
        *("Pni2ResNet20", "Sep2ResNet20", "Smooth0.25ResNet20"),
    ),
)
TABLE3 = _table(
    "table3",
    "Blind attacks, PGD adversarially trained",
    # The paper's networks attack each other, so that target and oracle change together; the controls are attacked by
    # one and the same oracle.
    tuple(
        Row(target, oracle=oracle)
        for one, other in (("ResNet20", "En5ResNet20"), ("ResNet44", "En2ResNet44"), ("ResNet110", "En2ResNet110"))
        for target, oracle in ((one, other), (other, one))
    )
    + rows("Plain5ResNet20", "Wide5ResNet20", oracle="ResNet20"),
    attacks=BLIND,
    smoke=("ResNet20", "En5ResNet20"),
)
TABLE4 = _table(
    "table4",
    "Natural accuracy, naturally trained",
    rows("ResNet20", "ResNet44", "En2ResNet20", "En5ResNet20", "Plain2ResNet20", "Plain5ResNet20", "Wide5ResNet20"),
    attacks=("nat",),
    loss="natural",
    dataset="cifar100",
    more_claims=(Claim("ResNet44", "En5ResNet20"),),  # the best of the four is the deepest
)
TABLE5 = _table(
    "table5",
    "Natural and robust accuracy, PGD adversarially trained, white-box",
    rows("ResNet20", "En2ResNet20", "En5ResNet20", "ResNet44", "Plain2ResNet20", "Plain5ResNet20", "Wide5ResNet20"),
    dataset="cifar100",
    more_claims=(Claim("En2ResNet20", "ResNet44"),),  # an ensemble against depth
)
TABLE6 = _table(
    "table6",
    "Blind attacks, PGD adversarially trained",
    (Row("ResNet20", oracle="En2ResNet20"), *rows("En2ResNet20", "Plain2ResNet20", "Wide2ResNet20", oracle="ResNet20")),
    attacks=BLIND,
    dataset="cifar100",
)
_APART = (
    ("En2ResNet20", "En5ResNet20"),
    ("En2ResNet44", "En5ResNet20"),
    ("En2ResNet110", "En5ResNet20"),
    ("En2ResNet110", "En1WideResNet34-10"),
)
TABLE7 = _table(
    "table7",
    "Integration of separately trained networks, PGD adversarially trained",
    tuple(Row(f"{one}+{other}", paper=("table7", f"{one}&{other}")) for one, other in _APART)
    + _from("table2", "En2ResNet20", "En5ResNet20", "En2ResNet44", "En2ResNet110", "En1WideResNet34-10")
    # controls: the same parts without noise, and as many members trained together
    + rows("Plain2ResNet20+Plain5ResNet20", "En7ResNet20"),
    more_claims=(
        *(Claim(f"{one}+{other}", part) for one, other in _APART for part in (one, other)),
        Claim("En2ResNet20+En5ResNet20", "Plain2ResNet20+Plain5ResNet20"),
        Claim("En7ResNet20", "En2ResNet20+En5ResNet20"),
    ),
    smoke=("En2ResNet20+En5ResNet20", "En2ResNet20"),
)
TABLE8 = _table(
    "table8",
    "An ensemble and a wide network, PGD adversarially trained",
    (*rows("En2ResNet20", "WRN-14-2", "Wide2ResNet20"), _PLAIN2),
    more_claims=(Claim("En2ResNet20", "WRN-14-2"),),
    smoke=("En2ResNet20", "WRN-14-2"),
)
TABLE9 = _table(
    "table9",
    # The two networks are trained together. An update of their weights is a gradient step on the mean loss with the
    # training's learning rate; the paper writes the sum of losses and names no rate.
    "Two depths with learned weights, PGD adversarially trained",
    (
        Row("En2ResNet32"),
        Row(_JOINT, weights="learned"),
        # controls: networks trained with equal weights, which are then kept or replaced, and the shallower pair
        Row(_JOINT, paper=("table9", "none"), weights="optimal"),
        Row(_JOINT, paper=("table9", "none")),
        *_from("table2", "En2ResNet20"),
    ),
    attacks=("nat", "ifgsm20", "cw"),
    more_claims=(
        Claim(f"{_JOINT} (learned weights)", "En2ResNet32"),
        Claim(f"{_JOINT} (learned weights)", _JOINT),
        Claim(f"{_JOINT} (learned weights)", "En2ResNet20"),
        Claim(f"{_JOINT} (optimal weights)", _JOINT),
    ),
    smoke=(f"{_JOINT} (learned weights)", f"{_JOINT} (optimal weights)"),
)
TABLE10 = replace(
    TABLE9,
    name="table10",
    dataset="cifar100",
    rows=(
        *TABLE9.rows[:2],
        *(replace(row, paper=("table10", "none")) for row in TABLE9.rows[2:4]),
        *_from("table5", "En2ResNet20"),
    ),
)
SECTION4_4 = _table(
    "section4_4",
    "Gradient masking, and ensembles without noise",
    rows("En1ResNet20", "En2ResNet20", "En5ResNet20", loss="natural")
    + _from("table2", "ResNet20")
    + (
        _PLAIN2,
        Row("ResNet20+ResNet20", paper=_PAPER_APART),
        Row("ResNet20+ResNet44", paper=("section4_4", "ResNet20+ResNet44 no noise, separate")),
    )
    + _from("table2", "En1ResNet20", "En2ResNet20", "En5ResNet20"),
    more_claims=(
        # noise alone does not defend: adversarial training does
        *(Claim(name, f"{name} (natural)", ("ifgsm20",)) for name in ("En1ResNet20", "En2ResNet20", "En5ResNet20")),
        # averaging without noise helps little
        Claim("Plain2ResNet20", "ResNet20"),
        Claim("ResNet20+ResNet20", "ResNet20"),
        Claim("En2ResNet20", "ResNet20+ResNet20"),
        Claim("En2ResNet20", "ResNet20+ResNet44"),
    ),
    smoke=("En1ResNet20 (natural)", "En1ResNet20", "ResNet20+ResNet20"),
)
FIGURE5 = _table(
    "fig5",
    "Training and validation accuracy over the epochs",
    rows("ResNet20", "En1ResNet20", "En2ResNet20", "En5ResNet20", "ResNet44", "En1ResNet44", "En2ResNet44")
    + rows("Plain5ResNet20"),
    attacks=(),
)
FIGURE6 = _table(
    "fig6",
    "Original and adversarial images",
    rows("ResNet20", "En5ResNet20"),
    attacks=(),
    smoke=("ResNet20", "En5ResNet20"),
)

TABLES = {
    table.name: table
    for table in (TABLE1, TABLE2, TABLE3, TABLE4, TABLE5, TABLE6, TABLE7, TABLE8, TABLE9, TABLE10, SECTION4_4)
}
