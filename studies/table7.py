"""Table 7: ensembles of ensembles that were trained apart, CIFAR-10.

Without arguments: 8x8 digits and networks of depth 8, on two cores. The paper's own setting:
--dataset cifar10 --data FILE.npz --preset paper --device cuda.
"""

from __future__ import annotations

from tables import Claim, Row, Table, app_for

TABLE = Table(
    name="table7",
    caption="Integration of separately trained networks, PGD adversarially trained",
    loss="pgd",
    columns=("nat", "fgsm", "ifgsm20", "cw"),
    rows=(
        Row("En2ResNet20+En5ResNet20", paper=("table7", "En2ResNet20&En5ResNet20")),
        Row("En2ResNet44+En5ResNet20", paper=("table7", "En2ResNet44&En5ResNet20")),
        Row("En2ResNet110+En5ResNet20", paper=("table7", "En2ResNet110&En5ResNet20")),
        Row("En2ResNet110+En1WideResNet34-10", paper=("table7", "En2ResNet110&En1WideResNet34-10")),
        # the parts, from Table 2
        Row("En2ResNet20", paper=("table2", "En2ResNet20")),
        Row("En5ResNet20", paper=("table2", "En5ResNet20")),
        Row("En2ResNet44", paper=("table2", "En2ResNet44")),
        Row("En2ResNet110", paper=("table2", "En2ResNet110")),
        Row("En1WideResNet34-10", paper=("table2", "En1WideResNet34-10")),
        # controls: the same parts without noise, and as many members trained together
        Row("Plain2ResNet20+Plain5ResNet20"),
        Row("En7ResNet20"),
    ),
    claims=(
        Claim("En2ResNet20+En5ResNet20", "En2ResNet20"),
        Claim("En2ResNet20+En5ResNet20", "En5ResNet20"),
        Claim("En2ResNet44+En5ResNet20", "En2ResNet44"),
        Claim("En2ResNet44+En5ResNet20", "En5ResNet20"),
        Claim("En2ResNet110+En5ResNet20", "En2ResNet110"),
        Claim("En2ResNet110+En5ResNet20", "En5ResNet20"),
        Claim("En2ResNet110+En1WideResNet34-10", "En2ResNet110"),
        Claim("En2ResNet110+En1WideResNet34-10", "En1WideResNet34-10"),
        Claim("En2ResNet20+En5ResNet20", "Plain2ResNet20+Plain5ResNet20"),
        Claim("En7ResNet20", "En2ResNet20+En5ResNet20"),
    ),
    smoke=("En2ResNet20+En5ResNet20", "En2ResNet20"),
)

app = app_for(TABLE)

if __name__ == "__main__":
    app()
