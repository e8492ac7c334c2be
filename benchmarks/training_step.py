"""One training step of the published `enc` network, with its mixers in the S x S form and in the chunkwise form.

`python -m benchmarks.training_step CASE-AS-JSON` prints one case's peak memory as JSON (used in a fresh process).
"""

import dataclasses
import json
import sys
from collections.abc import Callable

import torch

from benchmarks.measure import in_fresh_process, keep, peak_memory, peak_of_process, table, times
from xlstm_unet_lab import UNet, published_config

WIDTHS = {2: (32, 64, 128, 256, 512, 512, 512), 3: (32, 64, 128, 256, 320, 320)}
CLASSES = 14  # abdomen MRI: 13 organs and background
REPEATS = 3


@dataclasses.dataclass(frozen=True)
class Case:
    spatial_dims: int
    size: int  # of the cubic patch
    form: str  # of the mLSTM
    precision: str = "float32"  # or "bfloat16", by autocast
    channels_last: bool = False

    def __str__(self) -> str:
        layout = "channels last" if self.channels_last else "default layout"
        return f"{self.spatial_dims}-D {self.size}, {self.form}, {self.precision}, {layout}"


FORMS, SETTINGS = ("parallel", "chunkwise"), [(p, last) for p in ("float32", "bfloat16") for last in (False, True)]
GROUPS = [  # what runs side by side; the S x S form needs too much memory at 512 x 512
    *([Case(2, size, form) for form in FORMS] for size in (192, 256, 320)),
    [Case(2, 320, form, "bfloat16", True) for form in FORMS],
    [Case(2, 320, "chunkwise", *setting) for setting in SETTINGS],
    [Case(2, 512, "chunkwise"), Case(2, 512, "chunkwise", "bfloat16", True)],
    [Case(3, 64, form) for form in FORMS],
    [Case(3, 64, "chunkwise", *setting) for setting in SETTINGS],
]


def network(case: Case) -> UNet:
    dims, stages = case.spatial_dims, len(WIDTHS[case.spatial_dims])
    config = published_config(
        "enc",
        spatial_dims=dims,
        in_channels=1,
        num_classes=CLASSES,
        patch_size=[case.size] * dims,
        features=WIDTHS[dims],
        strides=[[1] * dims] + [[2] * dims] * (stages - 1),
        kernel_sizes=[[3] * dims] * stages,
        encoder_blocks=[2] * stages,
        decoder_blocks=[2] * (stages - 1),
        deep_supervision=True,
    )
    return UNet(dataclasses.replace(config, mlstm_form=case.form))


def step(case: Case) -> Callable[[], None]:
    """A function that does one training step, forward, backward and update, at batch size 1."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}[case.spatial_dims]
    layout = layout if case.channels_last else torch.contiguous_format
    model = network(case).to(device, memory_format=layout)
    image = torch.randn(1, 1, *[case.size] * case.spatial_dims, device=device).to(memory_format=layout)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-4)

    def run() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=case.precision == "bfloat16"):
            loss = sum(logits.float().square().mean() for logits in model(image))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return run


def measure() -> dict:
    rows = []
    for group in GROUPS:
        seconds = times({str(case): step(case) for case in group}, REPEATS)
        for case in group:
            memory = in_fresh_process("benchmarks.training_step", json.dumps(dataclasses.asdict(case)))
            best = seconds[str(case)]["best"]
            ratio = seconds[str(group[0])]["best"] / best
            row = {"group": str(group[0]), **dataclasses.asdict(case), "seconds": best, "faster than first": ratio}
            row |= {"gigabytes": memory["bytes"] / 2**30, "whole process gigabytes": memory["whole"] / 2**30}
            rows.append(row)
            shown = [[str(case), best, ratio, row["gigabytes"], row["whole process gigabytes"]]]
            table("one training step", ["case", "best s", "faster than first", "adds GB", "process GB"], shown)
    return {"rows": rows}


def main() -> None:
    keep("training_step", measure())


if __name__ == "__main__":
    run = step(Case(**json.loads(sys.argv[1])))
    print(json.dumps({"bytes": peak_memory(run), "whole": peak_of_process()}))
