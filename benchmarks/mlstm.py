"""The forms of the mLSTM side by side, forward and backward: ours, and every CPU form in mlstm_kernels.

`python -m benchmarks.mlstm FORM S D` prints one case's peak memory as JSON (used in a fresh process).
"""

import json
import math
import sys
from collections.abc import Callable

import torch

from benchmarks.measure import in_fresh_process, keep, peak_memory, table, times
from xlstm_unet_lab.ops import mlstm
from xlstm_unet_lab.ops.devices import keep_freed_memory

SHAPES = ((1, 4, 6400, 64), (1, 4, 6400, 32), (1, 4, 4096, 64), (1, 4, 1024, 128))  # (B, H, S, D)
TARGET_KERNELS, TARGET_PARALLEL = 2, 60  # ratios to reach against the best native chunkwise form, and S x S
LENGTHS = (256, 1024, 4096, 6400, 12800, 25600, 51200)
LONGEST_SQUARE = 6400  # tokens up to which S x S forms run: their memory is that of several S x S matrices a head
SMALL_HEAD = 64
RIVAL = "chunkwise--native_custbw 64"  # the fastest of theirs on a CPU


def forms() -> dict[str, Callable]:
    """Name -> function of (q, k, v, i, f). Theirs take lengths that are whole chunks."""
    from mlstm_kernels.torch import get_available_mlstm_kernels, get_mlstm_kernel
    from mlstm_kernels.torch.recurrent import registry_sequence

    ours = {"ours chunkwise": mlstm.chunkwise, "ours parallel": mlstm.parallel, "ours recurrent": mlstm.recurrent}
    if torch.cuda.is_available():
        ours["ours triton"] = lambda *inputs: mlstm.run(*inputs, form="triton")
        chosen = ("chunkwise--triton_xl_chunk", "chunkwise--triton_limit_chunk")
    else:
        # The siging kernels compute another function (a sigmoid input gate).
        chosen = tuple(n for n in get_available_mlstm_kernels() if "native" in n and "siging" not in n)
    theirs = {name: get_mlstm_kernel(name) for name in chosen}
    theirs |= {f"recurrent--{name}": kernel for name, kernel in registry_sequence.items() if "triton" not in name}
    with_chunks = {
        f"{name} {size}": lambda *x, kernel=kernel, size=size: kernel(*x, chunk_size=size)
        for name, kernel in theirs.items()
        if name.startswith("chunkwise")
        for size in (64, 128)
    }
    return ours | with_chunks | {name: kernel for name, kernel in theirs.items() if not name.startswith("chunkwise")}


def is_square(name: str) -> bool:
    return "parallel" in name


def is_quick(name: str) -> bool:
    """S x S matrices and loops over tokens take seconds: those run once, the others many times."""
    return not is_square(name) and "recurrent" not in name


def forward_backward(form: Callable, shape: tuple[int, ...]) -> Callable[[], None]:
    """A function that runs the form once forward and backward on inputs of the shape (B, H, S, D)."""
    generator = torch.Generator().manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs = [torch.randn(shape, generator=generator) for _ in "qkv"]
    inputs += [torch.randn(shape[:3], generator=generator) + offset for offset in (0, 3)]
    inputs = [x.to(device).requires_grad_() for x in inputs]
    gradient = torch.randn(shape, generator=generator).to(device)

    def run() -> None:
        h = form(*inputs)
        h = h[0] if isinstance(h, tuple) else h
        torch.autograd.grad(h, inputs, gradient)

    return run


def measure() -> dict:
    """Time every form at the design's shapes, then time and memory of a few against the length."""
    keep_freed_memory()  # as every training on a CPU does; peaks are measured in processes of their own, without
    known, shapes = forms(), []
    for shape in SHAPES:
        seconds = times({name: forward_backward(f, shape) for name, f in known.items() if is_quick(name)}, 15)
        slow = {name: forward_backward(f, shape) for name, f in known.items() if not is_quick(name)}
        seconds |= times(slow, 1, warm_up=False)
        best = min((name for name in seconds if name.startswith("chunkwise")), key=lambda name: seconds[name]["best"])
        square = min((name for name in seconds if is_square(name)), key=lambda name: seconds[name]["best"])
        ours = seconds["ours chunkwise"]["best"]
        ratios = {
            "best native chunkwise": best,
            "over best native chunkwise": seconds[best]["best"] / ours,
            "fastest S x S": square,
            "over fastest S x S": seconds[square]["best"] / ours,
        }
        shapes.append({"shape": shape, "seconds": seconds, "ratios": ratios})
        rows = [[n, 1e3 * s["best"], 1e3 * s["median"], s["best"] / ours] for n, s in seconds.items()]
        table(f"mLSTM forward + backward, {shape}", ["form", "best ms", "median ms", "times ours"], rows)
    rows = [[shape["shape"], *shape["ratios"].values()] for shape in shapes]
    table(f"times ours, at least {TARGET_KERNELS} over the first to reach", ["shape", *shapes[0]["ratios"]], rows)
    growth = [row for length in LENGTHS for row in grow(known, length)]
    for shape in shapes:
        names = ("ours chunkwise", shape["ratios"]["best native chunkwise"])
        shape["megabytes"] = {name: megabytes(name, *shape["shape"][2:]) for name in names}
    rows = [[row["form"], row["tokens"], row["milliseconds"], row["megabytes"]] for row in growth]
    table(f"growth with the length, H = 4, D = {SMALL_HEAD}", ["form", "tokens", "best ms", "peak MB"], rows)
    targets = {"over best native chunkwise": TARGET_KERNELS, "over fastest S x S at 6400 tokens": TARGET_PARALLEL}
    return {"targets": targets, "shapes": shapes, "growth": growth}


def grow(known: dict[str, Callable], length: int) -> list[dict]:
    """Time and peak memory of three forms at one length."""
    names = ["ours chunkwise", RIVAL] if RIVAL in known else ["ours chunkwise"]
    names += ["ours parallel"] if length <= LONGEST_SQUARE else []
    shape, rows = (1, 4, length, SMALL_HEAD), []
    seconds = times({name: forward_backward(known[name], shape) for name in names}, 3)
    for name in names:
        row = {"form": name, "tokens": length, "milliseconds": 1e3 * seconds[name]["best"]}
        rows.append(row | {"megabytes": megabytes(name, length, SMALL_HEAD)})
    return rows


def megabytes(name: str, length: int, width: int) -> float:
    """Peak memory of one forward and backward pass in a fresh process, NaN where it failed."""
    return in_fresh_process("benchmarks.mlstm", name, str(length), str(width)).get("bytes", math.nan) / 2**20


def main() -> None:
    keep("mlstm", measure())


if __name__ == "__main__":
    form, tokens, width = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    forward_backward(forms()[form], (1, 4, 128, width))()  # loads what is loaded once
    case = forward_backward(forms()[form], (1, 4, tokens, width))
    print(json.dumps({"bytes": peak_memory(case)}))
