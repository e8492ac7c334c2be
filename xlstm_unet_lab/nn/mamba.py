"""The Mamba layer and its block on token sequences, as U-Mamba puts them into a U-Net.

Source: Gu & Dao, Mamba (arXiv 2312.00752), section 3.4 and figure 3; Ma et al., U-Mamba (arXiv 2401.04722), figure 1.
Letters: B batch, S tokens, E inner width, N state size, R rank of the step size's projection.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlstm_unet_lab.nn.layers import CausalConvolution
from xlstm_unet_lab.ops.checks import whole_number
from xlstm_unet_lab.ops.selective_scan import selective_scan

STATE_SIZE, KERNEL_SIZE, EXPANSION = 16, 4, 2  # N, tokens that the convolution sees, E beside the width: as published
STEP_SIZES = (1e-3, 1e-1)  # range of delta at initialisation, log-uniform over the channels


class MambaLayer(nn.Module):
    """Mix tokens with a selective scan: input projection, causal convolution, scan, gate, output projection.

    Tokens (B, S, width) -> (B, S, width). The inner width E is twice the width, R a sixteenth of it, rounded up.
    Raises ValueError for a width below 1 and tokens of another rank or width.
    """

    def __init__(self, width: int):
        super().__init__()
        inner, rank = EXPANSION * whole_number("width", width), math.ceil(width / 16)
        self.sizes = (rank, STATE_SIZE, STATE_SIZE)
        self.input_projection = nn.Linear(width, 2 * inner, bias=False)
        self.convolution = CausalConvolution(inner, KERNEL_SIZE)
        self.parameter_projection = nn.Linear(inner, sum(self.sizes), bias=False)  # to the token's own delta, B, C
        self.step_projection = nn.Linear(rank, inner)
        self.log_decay = nn.Parameter(torch.empty(inner, STATE_SIZE))  # A = -exp(log_decay)
        self.skip = nn.Parameter(torch.empty(inner))  # D
        self.output_projection = nn.Linear(inner, width, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start the scan as published: A = -1 .. -N in every channel, D = 1, step sizes log-uniform in STEP_SIZES."""
        inner, state_size = self.log_decay.shape
        self.log_decay.copy_(torch.arange(1.0, state_size + 1).log().expand(inner, -1))
        nn.init.ones_(self.skip)
        bound = self.sizes[0] ** -0.5
        nn.init.uniform_(self.step_projection.weight, -bound, bound)
        step_size = torch.empty(inner).uniform_(*map(math.log, STEP_SIZES)).exp()
        self.step_projection.bias.copy_(step_size + torch.log(-torch.expm1(-step_size)))  # the inverse of softplus

    def forward(self, tokens: Tensor) -> Tensor:
        width = self.input_projection.in_features
        if tokens.ndim != 3 or tokens.shape[-1] != width or min(tokens.shape) < 1:
            raise ValueError(f"tokens have shape {tuple(tokens.shape)}, expected (batch, tokens, {width}), none 0")
        x, z = self.input_projection(tokens).chunk(2, dim=-1)  # both (B, S, E)
        x = F.silu(self.convolution(x))
        step_size, B, C = self.parameter_projection(x).split(self.sizes, dim=-1)  # (B, S, R), (B, S, N), (B, S, N)
        delta = F.softplus(self.step_projection(step_size))  # (B, S, E)
        A = -torch.exp(self.log_decay)
        u, delta, B, C = (x.transpose(1, 2) for x in (x, delta, B, C))  # the scan wants time last
        y = selective_scan(u, delta, A, B, C, self.skip, check_values=False)  # a look at values would hold up a GPU
        return self.output_projection(y.transpose(1, 2) * F.silu(z))


class MambaBlock(nn.Module):
    """Layer norm, then a Mamba layer, over a sequence of tokens: (B, S, width) -> the same shape.

    With `residual` the layer adds to its input; in U-Mamba's code it replaces it. Errors are those of MambaLayer.
    """

    def __init__(self, width: int, *, residual: bool = True):
        super().__init__()
        self.layer = MambaLayer(width)
        self.norm = nn.LayerNorm(width)
        self.residual = residual

    # Mamba sees a sequence, never the grid: the argument is there so that every mixer's block is called in one way.
    def forward(self, tokens: Tensor, grid: tuple[int, ...]) -> Tensor:
        x = self.layer(self.norm(tokens))
        return tokens + x if self.residual else x
