"""Table 9: an ensemble of two depths, with learned weights, CIFAR-10.

The two networks are trained together. Their weights are updated once an epoch as in section 5 (learned), are those of
least loss on validation after training (optimal), or stay equal. An update here is a gradient step on the mean loss
with the training's learning rate; the paper writes the sum of losses and names no rate.

Without arguments: 8x8 digits and networks of depth 8, on two cores. The paper's own setting:
--dataset cifar10 --data FILE.npz --preset paper --device cuda.
"""

from __future__ import annotations

from tables import Claim, Row, Table, app_for

TABLE = Table(
    name="table9",
    caption="Two depths with learned weights, PGD adversarially trained",
    loss="pgd",
    columns=("nat", "ifgsm20", "cw"),
    rows=(
        Row("En2ResNet32"),
        Row("En1ResNet20&En1ResNet32", weights="learned"),
        # controls: networks trained with equal weights, which are then kept or replaced, and the shallower pair
        Row("En1ResNet20&En1ResNet32", paper=("table9", "none"), weights="optimal"),
        Row("En1ResNet20&En1ResNet32", paper=("table9", "none")),
        Row("En2ResNet20", paper=("table2", "En2ResNet20")),
    ),
    claims=(
        Claim("En1ResNet20&En1ResNet32 (learned weights)", "En2ResNet32"),
        Claim("En1ResNet20&En1ResNet32 (learned weights)", "En1ResNet20&En1ResNet32"),
        Claim("En1ResNet20&En1ResNet32 (learned weights)", "En2ResNet20"),
        Claim("En1ResNet20&En1ResNet32 (optimal weights)", "En1ResNet20&En1ResNet32"),
    ),
    smoke=("En1ResNet20&En1ResNet32 (learned weights)", "En1ResNet20&En1ResNet32 (optimal weights)"),
)

app = app_for(TABLE)

if __name__ == "__main__":
    app()
