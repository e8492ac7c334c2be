"""What the Triton kernels ask of a GPU that is not there: compiled for it, and read off the result.

A forward and a backward pass run on the processor with a stand-in for every kernel that notes how it was launched, and
each launch is then compiled for a chip. Registers, spilled bytes, shared memory and warps say how many programs of a
kernel a multiprocessor can hold at once.

`python -m benchmarks.triton_kernels 90` prints the rows of compute capability 9.0 as JSON.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from benchmarks import measure
from xlstm_unet_lab.ops import mlstm_triton
from xlstm_unet_lab.ops.mlstm_recurrence import empty_state

KERNELS = ("sum_chunks", "scan_states", "attend")
DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
WIDTHS = (32, 64)  # of heads; from these two on tiles stay as they are
REGISTERS = 65536  # of a multiprocessor
MATRIX_INSTRUCTION = r"\b(?:wgmma\.mma_async|mma|tcgen05\.mma)\."
UNITS_SINCE = 80  # compute capability whose matrix units Triton uses


class Chip(NamedTuple):
    """Limits of a compute capability. Source: CUDA C++ Programming Guide, technical specifications."""

    capability: int  # 90 for 9.0
    shared: int  # bytes that one program may use
    shared_in_all: int  # bytes of a multiprocessor
    warps: int  # of a multiprocessor


CHIPS = {
    75: Chip(75, 64 * 1024, 64 * 1024, 32),
    80: Chip(80, 163 * 1024, 164 * 1024, 64),
    90: Chip(90, 227 * 1024, 228 * 1024, 64),
    100: Chip(100, 227 * 1024, 228 * 1024, 64),
}


class Launch(NamedTuple):
    """A kernel and all that its compilation depends on."""

    kernel: Any
    signature: dict[str, str]  # name of an argument -> its type
    constants: dict[str, Any]
    multiples: tuple[int, ...]  # places of arguments that are multiples of 16, as Triton finds out at a launch
    options: dict[str, int]


class Noting:
    """Stands in for a kernel: notes a launch and computes nothing."""

    def __init__(self, kernel, noted: list[Launch]):
        self.kernel, self.noted = kernel, noted

    def __getitem__(self, grid):
        return self.launch

    def launch(self, *arguments, **named):
        names = [name for name in self.kernel.arg_names if not name.isupper()]
        given = dict(zip(names, arguments, strict=True))
        constants = {name: value for name, value in named.items() if name.isupper()}
        constants |= {name: x for name, x in given.items() if isinstance(x, int) and x == 1}  # as Triton itself does
        signature = {name: f"*{DTYPES[x.dtype]}" if isinstance(x, torch.Tensor) else "i32" for name, x in given.items()}
        multiples = tuple(
            n
            for n, x in enumerate(given.values())
            if (x.data_ptr() if isinstance(x, torch.Tensor) else x) % 16 == 0 and names[n] not in constants
        )
        options = {name: value for name, value in named.items() if name.startswith("num_")}
        launch = Launch(self.kernel, signature | dict.fromkeys(constants, "constexpr"), constants, multiples, options)
        if launch not in self.noted:
            self.noted.append(launch)


def launches(dtype: torch.dtype, key_width: int, value_width: int, chip: Chip) -> list[Launch]:
    """Every kernel of a forward and a backward pass as `mlstm_triton` would launch it on that chip."""
    from xlstm_unet_lab.ops import triton_kernels

    noted = []
    stand_ins = {name: Noting(getattr(triton_kernels, name), noted) for name in KERNELS}
    q, k, v = (torch.zeros(1, 1, 32, w, dtype=dtype, requires_grad=True) for w in (key_width, key_width, value_width))
    i, a = torch.zeros(2, 1, 1, 32, requires_grad=True)
    of_chip = mock.patch.object(mlstm_triton, "capability", lambda device: divmod(chip.capability, 10))
    with mock.patch.multiple(triton_kernels, **stand_ins), of_chip:
        h, _ = mlstm_triton.run_kernels(q, k, v, i, a, empty_state(q, v))
        h.backward(torch.ones_like(h))
    return noted


def compiled(launch: Launch, chip: Chip) -> dict[str, Any]:
    """Compile for a chip: registers of a thread, spilled and shared bytes, programs at once, matrix instructions."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    places = {(n,): [["tt.divisibility", 16]] for n in launch.multiples}
    source = ASTSource(launch.kernel, launch.signature, launch.constants, places)
    target = GPUTarget("cuda", chip.capability, 32)
    result = triton.compile(source, target=target, options=launch.options)
    usage = resource_usage(result.asm["cubin"])
    warps, shared = launch.options["num_warps"], result.metadata.shared
    fits = (REGISTERS // (usage["REG"] * 32 * warps), chip.warps // warps, chip.shared_in_all // max(shared, 1))
    return {
        "kernel": launch.kernel.__name__,
        **{name.lower(): getattr(value, "name", value) for name, value in launch.constants.items() if name.isupper()},
        **launch.options,
        "registers": usage["REG"],
        "spilled": usage["STACK"] + usage["LOCAL"],
        "shared": shared,
        "programs_at_once": min(fits),
        "matrix_instructions": len(re.findall(MATRIX_INSTRUCTION, result.asm["ptx"])),
    }


def resource_usage(cubin: bytes) -> dict[str, int]:
    """What cuobjdump, which comes with Triton, reads off a cubin: REG, STACK, LOCAL and more."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        text = subprocess.check_output([knobs.nvidia.cuobjdump.path, "-res-usage", file], text=True)
    return {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", text)}


def table(chip: Chip) -> list[dict[str, Any]]:
    """Every kernel as the form "auto" may launch it on a chip."""
    rows = []
    for dtype, name in DTYPES.items():
        if dtype == torch.bfloat16 and chip.capability < 80:  # mlstm_triton.obstacle: it has no units for it
            continue
        for width in WIDTHS:
            rows += [
                {"chip": f"sm_{chip.capability}", "dtype": name, "head_width": width, **compiled(launch, chip)}
                for launch in launches(dtype, width, width, chip)
            ]
    return rows


def main() -> None:
    rows = [row for chip in CHIPS.values() for row in table(chip)]
    measure.keep("triton_kernels", {"kernels": rows})
    columns = ["chip", "dtype", "head_width", "kernel", "registers", "spilled", "shared", "programs_at_once"]
    measure.table("Triton kernels, compiled", columns, [[row[name] for name in columns] for row in rows])


if __name__ == "__main__":
    for row in table(CHIPS[int(sys.argv[1])]):
        print(json.dumps(row), flush=True)
