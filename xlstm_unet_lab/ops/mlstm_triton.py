"""The mLSTM through the Triton kernels of mlstm_kernels (NXAI Community License), on an NVIDIA GPU.

Their function is ours, their gradient is not quite: it treats the normaliser max(|q . n|, exp(-m)) as a constant.
Under a norm over each head, as in every network here, a factor common to a token's outputs has no gradient but for the
norm's epsilon, and the two agree; without one they differ.

Source: Beck et al., Tiled Flash Linear Attention (arXiv 2503.14376).
"""

import functools
import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 128  # tokens of the kernels' chunks; sequences are padded to a multiple
WIDTHS = (16, 32, 64, 128, 256, 512)  # head widths the kernels are written for
WITHOUT_BLOCK_POINTERS = (3, 9)  # of Triton; tl.make_block_ptr only raises NotImplementedError from there on
# A padded token is never stored (input gate at minus this) and forgets nothing (forget gate at this).
PADDED_GATE = 100.0


def obstacle(q: Tensor, v: Tensor, with_state: bool) -> str | None:
    """Why the kernels cannot take this input, as a clause; None when they can. q (B, H, S, D), v (B, H, S, V)."""
    if q.device.type != "cuda" or torch.version.hip:
        return f"the tensors are on {q.device}, and the kernels run on an NVIDIA GPU"
    if reason := library_obstacle():
        return reason
    if q.shape[-1] not in WIDTHS or v.shape[-1] not in WIDTHS:
        return f"head widths are {q.shape[-1]} and {v.shape[-1]}, and the kernels take {WIDTHS}"
    if q.dtype == torch.float64:
        return "the tensors are float64, and the kernels take float32, bfloat16 and float16"
    if q.shape[2] < CHUNK:
        return f"there are {q.shape[2]} tokens, and one chunk of the kernels holds {CHUNK}"
    return "a state goes in or out, whose gradient the kernels do not give" if with_state else None


@functools.cache
def library_obstacle() -> str | None:
    """Why the kernels cannot be called at all, as a clause; None when they can."""
    if missing := [name for name in ("triton", "mlstm_kernels") if importlib.util.find_spec(name) is None]:
        return f"{' and '.join(missing)} not installed: pip install {' '.join(missing)}"
    from triton import __version__ as version  # loads Triton, as the kernels will

    if tuple(map(int, version.split(".")[:2])) >= WITHOUT_BLOCK_POINTERS:
        return f"Triton is {version}, and the kernels need its block pointers, which 3.9 removed"
    return None


def triton(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    """h (B, H, S, V) in q's dtype; the products run in that dtype, gates and states in float32."""
    from mlstm_kernels.torch.chunkwise.triton_xl_chunk import mlstm_chunkwise__xl_chunk  # loads Triton

    length = q.shape[2]
    rest = -length % CHUNK
    q, k, v = (F.pad(x, (0, 0, 0, rest)).contiguous() for x in (q, k.to(q.dtype), v.to(q.dtype)))
    i, f = (F.pad(x.float(), (0, rest), value=pad) for x, pad in ((i, -PADDED_GATE), (f, PADDED_GATE)))
    h = mlstm_chunkwise__xl_chunk(q, k, v, i, f, chunk_size=CHUNK, autocast_kernel_dtype=q.dtype)
    return h[:, :, :length].to(q.dtype)
