"""The Triton kernels without a GPU: run by Triton's interpreter, and what fits them."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from own_process import in_a_process_of_its_own

from xlstm_unet_lab.ops import mlstm, mlstm_triton

LADDER = Path(__file__).with_name("triton_ladder.py")


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is there on Linux alone")
def test_the_ladder():
    interpreter = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    report = in_a_process_of_its_own("pytest", "-q", "-p", "no:cacheprovider", str(LADDER), **interpreter)
    assert " passed" in report


def inputs(width=8, value_width=8, dtype=torch.float32, device="cpu"):
    q, v = (torch.ones(1, 1, 4, w, dtype=dtype, device=device) for w in (width, value_width))
    return q, q, v, q[..., 0], q[..., 0]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (inputs(), "the tensors are on cpu, and the kernels run on an NVIDIA GPU"),
        (inputs(device="meta"), "the tensors are on meta"),
    ],
    ids=["processor", "meta"],
)
def test_where_the_kernels_do_not_run_auto_takes_another_form_and_triton_says_why(given, reason, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert mlstm.run(*given).shape == (1, 1, 4, 8)
    with pytest.raises(ValueError, match=f"form 'triton' does not fit: {reason}.*use form='auto' or 'chunkwise'"):
        mlstm.run(*given, form="triton")


class OnGPU:
    """Of a tensor on a GPU, what is asked before one is used."""

    def __init__(self, dtype=torch.float32, width=64):
        self.device, self.dtype, self.shape = torch.device("cuda", 0), dtype, (1, 1, 8, width)


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is there on Linux alone")
@pytest.mark.parametrize(
    ("tensor", "of_gpu", "reason"),
    [
        (OnGPU(), (9, 0), None),
        (OnGPU(torch.float16), (7, 5), None),
        (OnGPU(torch.bfloat16), (8, 0), None),
        (OnGPU(torch.bfloat16), (7, 5), "this GPU has no units for bfloat16"),
        (OnGPU(torch.float64), (9, 0), "the tensors are torch.float64"),
        (OnGPU(width=513), (9, 0), "head widths are 513 and 513, and the kernels take at most 512"),
    ],
)
def test_what_fits_a_gpu(monkeypatch, tensor, of_gpu, reason):
    monkeypatch.setattr(mlstm_triton, "capability", lambda device: of_gpu)
    monkeypatch.setattr(mlstm_triton, "failure", lambda *kind: None)
    found = mlstm_triton.obstacle(tensor, tensor)
    assert found is None if reason is None else found.startswith(reason)


@pytest.mark.parametrize("kind", ["ROCm", "no Triton"])
def test_an_amd_gpu_and_a_machine_without_triton_take_the_chunkwise_form(monkeypatch, kind):
    monkeypatch.setattr(mlstm_triton, "capability", lambda device: (9, 0))
    if kind == "ROCm":
        monkeypatch.setattr(torch.version, "hip", "6.0")
    else:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    expected = (
        "the tensors are on cuda:0, and the kernels run on an NVIDIA" if kind == "ROCm" else "Triton is not installed"
    )
    assert mlstm_triton.obstacle(OnGPU(), OnGPU()).startswith(expected)


def test_importing_the_form_does_not_load_triton():
    in_a_process_of_its_own(
        "timeit", "-n", "1", "-r", "1", "import sys, xlstm_unet_lab.ops.mlstm; assert 'triton' not in sys.modules"
    )
