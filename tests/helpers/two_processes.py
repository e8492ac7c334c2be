"""Train the same problems on the number of processes given and write losses and weights.

python two_processes.py PROCESSES FOLDER
"""

import sys
from pathlib import Path

import torch
from tiny_problem import Tiny, cases, config

from xlstm_unet_lab.data.targets import Targets
from xlstm_unet_lab.training.fit import fit

REGIONS = Targets(("whole", "core"), ((1, 2), (2,)), (1, 2))


class Double(Tiny):
    """In float64, so that the order of sums hides no error; without dropout, whose draws differ between processes."""

    def __init__(self):
        super().__init__(deep=True, dropout=0.0)
        self.double()

    def forward(self, image):
        return super().forward(image.double())


class Cases(list):
    """Cases with a second label inside of the first."""

    def __init__(self, indices):
        super().__init__(cases(indices))
        for item in self:
            item["label"][5:9, 5:9] *= 2


def train(processes: int, folder: Path, train_set: list, stop_at: int | None = None, **changes) -> None:
    settings = config(devices=processes, batch_size=4, steps=6, save_every=2, validate_every=3, **changes)
    for record in fit(Double(), train_set, train_set, settings, folder):
        if record.step == stop_at:
            break


def main(processes: int, folder: Path) -> None:
    torch.set_num_threads(1)
    train(processes, folder / "classes", cases(range(3)), ema_decay=0.5)
    train(processes, folder / "regions", Cases(range(3)), targets=REGIONS)
    train(processes, folder / "resumed", Cases(range(3)), targets=REGIONS, stop_at=3)
    train(processes, folder / "resumed", Cases(range(3)), targets=REGIONS)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
