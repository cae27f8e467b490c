"""Table 2: natural and robust accuracy of PGD-trained networks and their noise-injected ensembles.

Without arguments: 8x8 digits and networks of depth 8, in a few minutes on two cores. The paper's own setting:
--dataset cifar10 --data FILE.npz --preset paper --device cuda.
"""

from __future__ import annotations

from tables import Claim, Row, Table, app_for

TABLE = Table(
    name="table2",
    caption="Natural and robust accuracy, PGD adversarially trained, white-box",
    loss="pgd",
    columns=("nat", "fgsm", "ifgsm20", "cw"),
    rows=(
        Row("ResNet20"),
        Row("En1ResNet20"),
        Row("En2ResNet20"),
        Row("En5ResNet20"),
        Row("ResNet44"),
        Row("En1ResNet44"),
        Row("En2ResNet44"),
        Row("ResNet110"),
        Row("En2ResNet110"),
        Row("En1WideResNet34-10"),
        # controls: what does averaging do without noise, and what does size do without either
        Row("Plain2ResNet20", paper=("section4_4", "2xResNet20 no noise, joint")),
        Row("Plain5ResNet20"),
        Row("Wide5ResNet20"),
        # is noise of two points, which is much cheaper to draw, as good
        Row("TwoPoint2ResNet20"),
        Row("TwoPoint5ResNet20"),
    ),
    on_request=("TwoPoint2ResNet20", "TwoPoint5ResNet20"),
    claims=(
        Claim("En1ResNet20", "ResNet20"),
        Claim("En2ResNet20", "En1ResNet20"),
        Claim("En5ResNet20", "En2ResNet20"),
        Claim("En2ResNet20", "ResNet20"),
        Claim("En5ResNet20", "ResNet20"),
        Claim("En1ResNet44", "ResNet44"),
        Claim("En2ResNet44", "En1ResNet44"),
        Claim("En2ResNet110", "ResNet110"),
        Claim("En2ResNet20", "Plain2ResNet20"),
        Claim("En5ResNet20", "Plain5ResNet20"),
        Claim("En5ResNet20", "Wide5ResNet20"),
        Claim("En2ResNet20", "TwoPoint2ResNet20"),
        Claim("En5ResNet20", "TwoPoint5ResNet20"),
    ),
)

app = app_for(TABLE)

if __name__ == "__main__":
    app()
