"""The forms of the mLSTM, training steps and the selective scan on a GPU, in one run of at most eight minutes.

`python -m benchmarks.gpu prediction` needs no GPU: it counts operations and bytes of the Triton kernels and writes what
an H200 could do at its ceilings to `results/mlstm_roofline.json`, which is a prediction and no measurement.
"""

import itertools
import math
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

from benchmarks.measure import keep, peak_memory, table, times
from benchmarks.training_step import Case, step
from xlstm_unet_lab.ops import mlstm
from xlstm_unet_lab.ops.mlstm_triton import choose_tiles
from xlstm_unet_lab.ops.selective_scan import choose_chunk_size, selective_scan

SHAPES = [(1, 4, tokens, 64) for tokens in (1024, 4096, 16384, 51200)] + [(8, 4, 4096, 64), (1, 4, 4096, 256)]
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
LONGEST_SQUARE = 4096  # tokens up to which S x S matrices are made
STEPS = [
    Case(dims, size, form, "bfloat16", True) for dims, size in ((2, 512), (3, 128)) for form in ("auto", "chunkwise")
]
SCANS = (64, 256, 1024, 4096, 16384)  # tokens of a chunk of the selective scan
SCANNED = ((2, 192, 16384, 16), (8, 384, 1024, 16))  # batch, width, tokens, state size: an early and a deep stage
SECONDS = 420  # after which no new case begins
REPEATS = 10
# An H200: bytes and operations a second. Source: NVIDIA's data sheet for the memory; bfloat16 as sustained in products.
MEMORY, OPERATIONS = 4.3e12, 790e12
SLOWER = {"bfloat16": 1, "float32": 6}  # a product of float32 is three of tf32, at half the rate


def forms() -> dict[str, Callable]:
    """Name -> function of (q, k, v, i, f)."""
    known = {
        form: lambda *x, form=form: mlstm.run(*x, form=form, check_values=False) for form in ("triton", "chunkwise")
    }
    known["chunkwise, compiled"] = torch.compile(known["chunkwise"])
    known["S x S"] = lambda *x: mlstm.parallel(*x, check_values=False)
    known["mlstm_kernels"] = published
    return known


def published(*inputs: torch.Tensor) -> torch.Tensor:
    """The kernels of mlstm_kernels, where their Triton still has block pointers."""
    from mlstm_kernels.torch.chunkwise.triton_xl_chunk import mlstm_chunkwise__xl_chunk

    return mlstm_chunkwise__xl_chunk(*inputs, chunk_size=128, autocast_kernel_dtype=inputs[0].dtype)


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator).to(device, dtype) for _ in "qkv"]
    inputs += [(torch.randn(shape[:3], generator=generator) + offset).to(device) for offset in (0, 3)]
    return [x.requires_grad_() for x in inputs]


def passes(form: Callable, inputs: list[torch.Tensor]) -> dict[str, Callable[[], Any]]:
    """The forward pass alone, and both."""

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return form(*inputs)

    def both() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(form(*inputs).sum(), inputs)

    return {"forward": forward, "both": both}


def measure_form(name: str, form: Callable, shape: tuple[int, ...], dtype: str, device: str, repeats: int) -> dict:
    """Milliseconds, tokens a second and peak memory; the error in words where the form does not run."""
    row = {"form": name, "shape": shape, "dtype": dtype}
    if name == "S x S" and shape[2] > LONGEST_SQUARE:
        return row | {"failed": f"not tried beyond {LONGEST_SQUARE} tokens"}
    try:
        cases = passes(form, make_inputs(shape, DTYPES[dtype], device))
        seconds = times(cases, repeats)
        memory = peak_memory(cases["both"])
    except Exception as problem:  # a compiler's or a driver's: it is a result
        return row | {"failed": f"{type(problem).__name__}: {problem}"[:300]}
    tokens = shape[0] * shape[2]
    row |= {f"{part} ms": 1e3 * seconds[part]["best"] for part in cases}
    return row | {"tokens a second": tokens / seconds["both"]["best"], "megabytes": memory / 2**20}


def measure_forms(known: dict, shapes: Iterable, device: str, until: float, repeats: int = REPEATS) -> list[dict]:
    """Every form at every shape and dtype, side by side; what is left out for time is said."""
    rows = []
    for (dtype, shape), (name, form) in itertools.product(itertools.product(DTYPES, shapes), known.items()):
        if time.monotonic() > until:
            rows.append({"form": name, "shape": shape, "dtype": dtype, "failed": "no time was left"})
        else:
            rows.append(measure_form(name, form, shape, dtype, device, repeats))
    return rows


def measure_scan(device: str, shape: tuple[int, ...], repeats: int = REPEATS) -> list[dict]:
    """The selective scan by chunk size, forward and backward, and which of them is taken where nobody says."""
    batch, width, tokens, state = shape
    chosen = choose_chunk_size(torch.device(device), batch * width * state)
    chunks = sorted({min(size, tokens) for size in (*SCANS, chosen)})
    generator = torch.Generator().manual_seed(0)
    sizes = [(batch, width, tokens)] * 2 + [(width, state)] + [(batch, state, tokens)] * 2 + [(width,)]
    u, delta, A, B, C, D = (torch.randn(size, generator=generator).to(device) for size in sizes)
    inputs = [x.requires_grad_() for x in (u, delta.sigmoid() / 10, -A.exp(), B, C, D)]
    cases = {
        str(size): lambda size=size: torch.autograd.grad(selective_scan(*inputs, chunk_size=size).sum(), inputs)
        for size in chunks
    }
    seconds = times(cases, repeats)
    rows = [{"shape": shape, "chunk": size, "chosen": size == min(chosen, tokens)} for size in chunks]
    for row, (size, case) in zip(rows, cases.items(), strict=True):
        row |= {"both ms": 1e3 * seconds[size]["best"], "megabytes": peak_memory(case) / 2**20}
    return rows


def measure_steps() -> list[dict]:
    """Seconds of a training step of the published `enc` network, with our kernels and without."""
    seconds = times({str(case): step(case) for case in STEPS}, 3)
    return [{"case": name, "seconds": of_case["best"]} for name, of_case in seconds.items()]


def predict(shape: tuple[int, ...], dtype: str) -> dict[str, float]:
    """Operations and bytes of the Triton kernels, forward and both, and the least milliseconds an H200 needs for them.

    Every kernel is taken to read its inputs once and to write its outputs once, and tiles of a chunk beyond the
    diagonal are not counted.
    """
    batch, heads, tokens, width = shape
    tiles = choose_tiles(DTYPES[dtype], (9, 0), width, width)
    rows, chunks = batch * heads * tokens, batch * heads * math.ceil(tokens / tiles.chunk)
    inside = min(tiles.chunk, tokens) / 2 + tiles.rows / 2  # tokens that a row sees in its chunk
    attend, sums = rows * 2 * (2 * inside * width + width**2), rows * 2 * width**2
    token, state = rows * width * (2 if dtype == "bfloat16" else 4), chunks * (width + 1) * width * 4
    scan = 2 * token + state + 2 * state  # two inputs to sums, then the sums to states in their place
    forward = {"operations": sums + attend, "bytes": scan + 4 * token + state}
    backward = {"operations": 2 * sums + 3 * attend, "bytes": 2 * scan + 3 * (4 * token + state)}
    both = {name: forward[name] + backward[name] for name in forward}
    return {
        f"{part} {name}": value
        for part, work in (("forward", forward), ("both", both))
        for name, value in {
            **work,
            "ms": 1e3 * max(work["bytes"] / MEMORY, work["operations"] * SLOWER[dtype] / OPERATIONS),
        }.items()
    }


def predictions() -> list[dict]:
    return [
        {"form": "triton", "shape": shape, "dtype": dtype, **predict(shape, dtype)}
        for dtype in DTYPES
        for shape in SHAPES
    ]


def show(title: str, rows: list[dict]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table(title, columns, [[row.get(name) for name in columns] for row in rows])


def main() -> None:
    if not torch.cuda.is_available():
        print("no GPU: nothing is measured, `python -m benchmarks.gpu prediction` counts what one could do")
        return
    until = time.monotonic() + SECONDS
    result = {"predicted for an H200": predictions()}
    for name, measure in (
        ("mLSTM", lambda: measure_forms(forms(), SHAPES, "cuda", until)),
        ("training steps", measure_steps),
        ("selective scan", lambda: [row for shape in SCANNED for row in measure_scan("cuda", shape)]),
    ):
        result[name] = measure()
        show(name, result[name])
        keep("forms", result)  # after every part: what fails later takes nothing with it


if __name__ == "__main__":
    if sys.argv[1:] == ["prediction"]:
        keep("mlstm_roofline", {"prediction": "of an H200 at its ceilings; not measured", "rows": predictions()})
        show("predicted for an H200", predictions())
    else:
        main()
