"""Table 8: a noise-injected ensemble against a wide network, CIFAR-10.

Without arguments: 8x8 digits and networks of depth 8, on two cores. The paper's own setting:
--dataset cifar10 --data FILE.npz --preset paper --device cuda.
"""

from __future__ import annotations

from tables import Claim, Row, Table, app_for

TABLE = Table(
    name="table8",
    caption="An ensemble and a wide network, PGD adversarially trained",
    loss="pgd",
    columns=("nat", "fgsm", "ifgsm20", "cw"),
    rows=(
        Row("En2ResNet20"),
        Row("WRN-14-2"),
        # controls: as many parameters as the ensemble at the same depth, and its members without noise
        Row("Wide2ResNet20"),
        Row("Plain2ResNet20", paper=("section4_4", "2xResNet20 no noise, joint")),
    ),
    claims=(
        Claim("En2ResNet20", "WRN-14-2"),
        Claim("En2ResNet20", "Wide2ResNet20"),
        Claim("En2ResNet20", "Plain2ResNet20"),
    ),
    smoke=("En2ResNet20", "WRN-14-2"),
)

app = app_for(TABLE)

if __name__ == "__main__":
    app()
