"""What a mixer adds to a training step: networks with and without, side by side in float32."""

from collections.abc import Callable

import torch

import xlstm_unet_lab as lab
from benchmarks.measure import keep, table, times
from xlstm_unet_lab.ops.devices import keep_freed_memory

# name: network, dimensions and patch, batch, features, and the ratio to reach to `unet` of the same
CASES = {
    "2-D bot": ("xlstm_unet_bot", (128, 128), 8, (16, 32, 64, 96), 1.10),
    "2-D enc": ("xlstm_unet_enc", (128, 128), 8, (12, 24, 48, 64, 96), 1.30),
    "3-D bot": ("xlstm_unet_bot", (32, 48, 32), 2, (16, 32, 64, 96), 1.06),
}
REPEATS = 12


def step(model: str, patch: tuple[int, ...], batch: int, features: tuple[int, ...]) -> Callable[[], None]:
    """A function that does one training step as `fit` does: forward, backward and update."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        keep_freed_memory()
    arguments = {"spatial_dims": len(patch), "in_channels": 1, "num_classes": 3, "patch_size": patch}
    network = lab.build(model, features=features, **arguments).to(device)
    image = torch.randn(batch, 1, *patch, device=device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def run() -> None:
        logits = network(image)
        loss = sum(level.square().mean() for level in (logits if isinstance(logits, list) else [logits]))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return run


def measure(cases: dict = CASES, repeats: int = REPEATS) -> list[dict]:
    rows = []
    for name, (model, *of_both, wanted) in cases.items():
        seconds = times({"unet": step("unet", *of_both), model: step(model, *of_both)}, repeats)
        medians = {network: of_one["median"] for network, of_one in seconds.items()}
        ratio = seconds[model]["best"] / seconds["unet"]["best"]
        row = {"case": name, "seconds": seconds, "ratio": ratio, "ratio of medians": medians[model] / medians["unet"]}
        rows.append(row | {"to reach": wanted})
    return rows


def main() -> None:
    rows = measure()
    columns = ("case", "ratio", "ratio of medians", "to reach")
    table("a training step with mixers, times one without", list(columns), [[row[c] for c in columns] for row in rows])
    keep("mixer", {"rows": rows})


if __name__ == "__main__":
    main()
