"""Table 2: natural and robust accuracy of PGD-trained networks and their noise-injected ensembles.

Without arguments: 8x8 digits and networks of depth 8, in a few minutes on two cores. The paper's own setting:
--dataset cifar10 --data FILE.npz --preset paper --device cuda.
"""

from studies.lab.cli import app_for
from studies.paper.tables import TABLE2
from studies.table import finish

app = app_for(TABLE2, finish)

if __name__ == "__main__":
    app()
