"""Table 10: an ensemble of two depths, with learned weights, CIFAR-100.

The two networks are trained together. Their weights are those of least loss on validation, by section 5.

Without arguments: 8x8 digits and networks of depth 8, on two cores. The paper's own setting:
--dataset cifar100 --data FOLDER --preset paper --device cuda.
"""

from __future__ import annotations

from tables import Claim, Row, Table, app_for

TABLE = Table(
    name="table10",
    caption="Two depths with learned weights, PGD adversarially trained",
    loss="pgd",
    columns=("nat", "ifgsm20", "cw"),
    rows=(
        Row("En2ResNet32"),
        Row("En1ResNet20&En1ResNet32", weights="learned"),
        # controls: the same networks with equal weights, and the shallower pair
        Row("En1ResNet20&En1ResNet32", paper=("table10", "none")),
        Row("En2ResNet20", paper=("table5", "En2ResNet20")),
    ),
    claims=(
        Claim("En1ResNet20&En1ResNet32 (learned weights)", "En2ResNet32"),
        Claim("En1ResNet20&En1ResNet32 (learned weights)", "En1ResNet20&En1ResNet32"),
        Claim("En1ResNet20&En1ResNet32 (learned weights)", "En2ResNet20"),
    ),
    smoke=("En1ResNet20&En1ResNet32 (learned weights)", "En1ResNet20&En1ResNet32"),
)

app = app_for(TABLE)

if __name__ == "__main__":
    app()
