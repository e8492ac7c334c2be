# %% [markdown] seconds={"ci": 40, "cpu": 240, "gpu": 240} gigabytes={"ci": 2, "cpu": 3, "gpu": 6}
# # 03 · The sLSTM, what it can track, and blocks of both
#
# xLSTM has two cells. The mLSTM of lessons 01 and 02 has a large memory and needs no loop. The **sLSTM** has a small memory
# and a loop that nothing can unroll. Why keep it? Because there are things that only such a loop can do. You write the
# cell, find out why its loop cannot be cut, build one unit that tracks parity, and train both cells on the same task. At
# the end you see how cells become *blocks*, and blocks become networks.
#
# **You will be able to**
# * write the sLSTM and say what its recurrent weights are for,
# * explain why a linear recurrence can be cut into pieces and this one cannot,
# * build a unit that tracks parity, and show that an mLSTM does not learn to,
# * write an xLSTM block from its parts: norm, projection, convolution, cell, gate, residual.
#
# **Time.** 1 minute of computing in profile `cpu` (measured on 2 cores, 0.9 GB of memory), 75 minutes of exercises.
#
# **You need** lessons 01 and 02, and how to train a small network in PyTorch. Exercises of earlier lessons may be unsolved.
#
# **Words.** The [sLSTM](../docs/glossary.md#slstm) is the second cell of xLSTM, beside the
# [mLSTM](../docs/glossary.md#mlstm). *Memory mixing*: the answer of one unit enters the gates of others at the next
# [token](../docs/glossary.md#token). *State tracking*: following something that changes with every token, such as a
# position or a count. *Parity*: whether a number is odd or even.
#
# **Symbols.**
# * $t$, $S$: a token, and how many there are.
# * $z_t$, $i_t$, $f_t$, $o_t$: pre-activations from the token, one a unit: what to store, input, forget and output gate.
# * $R_z$, $R_i$, $R_f$, $R_o$: recurrent weights, a matrix for each of the four.
# * $D$: units of a head, so that each of these matrices is $D \times D$ in a head.
# * $\hat z_t$, $\hat i_t$, $\hat f_t$, $\hat o_t$: the pre-activations with what the last answers add.
# * $a_t$, $\sigma$, $e$: $\log\sigma(\hat f_t)$, the sigmoid, and the base of the exponential.
# * $c_t$, $n_t$, $m_t$, $h_t$: memory, normaliser, stabiliser and answer, one number a unit.
# * $g$, $u$: factor and summand of a step $c \mapsto g\,c + u$.
# * $c'_t$: the memory of a second sequence, to compare with $c_t$.

# %%
import logging
import time

import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import display
from ipywidgets import FloatSlider
from torch import nn
from tqdm.auto import tqdm

# While it is loaded, xlstm looks for a graphics card, and PyTorch logs a warning where there is none.
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

from xlstm import (
    FeedForwardConfig,
    mLSTMBlockConfig,
    mLSTMLayerConfig,
    sLSTMBlockConfig,
    sLSTMLayerConfig,
    xLSTMBlockStack,
    xLSTMBlockStackConfig,
)
from xlstm.blocks.slstm.cell import sLSTMCell, sLSTMCellConfig

from xlstm_unet_lab.course import check, choose, estimate, hint, progress, reveal
from xlstm_unet_lab.course.pictures.comparison import cost_curves, lines
from xlstm_unet_lab.course.pictures.explorers import Explorer
from xlstm_unet_lab.nn.vil import ViLBlock
from xlstm_unet_lab.ops import mlstm, slstm

# %% [markdown]
# ## 1 · The cell
#
# Go back to the memory of lesson 01 that was a single number, with an exponential input gate, a normaliser and a
# stabiliser. Put many of them side by side and call them **units**. So far each unit lives alone.
#
# Now let them hear each other. Before the units do anything with token $t$, the answers they gave to the last token enter
# all four pre-activations, through one matrix each:
#
# $$\hat z_t = z_t + R_z h_{t-1}, \quad \hat i_t = i_t + R_i h_{t-1}, \quad \hat f_t = f_t + R_f h_{t-1}, \quad
# \hat o_t = o_t + R_o h_{t-1}.$$
#
# This is **memory mixing**. What follows is known from lesson 01, unit by unit. With the logarithm of the forget gate,
# $a_t = \log\sigma(\hat f_t)$, and the stabiliser $m_t = \max(a_t + m_{t-1},\, \hat i_t)$,
#
# $$c_t = e^{a_t + m_{t-1} - m_t}\, c_{t-1} + e^{\hat i_t - m_t} \tanh(\hat z_t),$$
#
# $$n_t = e^{a_t + m_{t-1} - m_t}\, n_{t-1} + e^{\hat i_t - m_t}, \qquad h_t = \sigma(\hat o_t)\, \frac{c_t}{n_t} .$$
#
# **No floor under the normaliser?** It is not needed. $m_t$ equals one of the two numbers it is the maximum of, so one of
# the two exponentials is 1. If it is the second, $n_t \ge 1$ at once. If it is the first, $n_t \ge n_{t-1}$. The first token
# finds an empty memory, $m_0 = -\infty$, and sets $n_1 = 1$. So $n_t \ge 1$ for all tokens. And as $c_t / n_t$ is a mean of
# numbers between -1 and 1, no answer leaves that range.
#
# **Heads.** Units are grouped into heads, and a unit hears only its own head. With two heads, each of the four matrices
# looks like this, a square of $D \times D$ weights for each head and zeros elsewhere:
#
# $$R_z = \begin{pmatrix} \blacksquare & 0 \\ 0 & \blacksquare \end{pmatrix}$$

# %% [markdown]
# ### Exercise 03.1: recurrent weights
#
# *About 5 minutes, difficulty 1 of 5.* How many recurrent weights has an sLSTM of `width` units in `heads` heads?


# %% exercise="03.1"
def recurrent_parameters(width, heads):
    pass  ### SOLUTION


# %%
check("03.1", recurrent_parameters)

# %% [markdown]
# ### Exercise 03.2: the sLSTM, token by token
#
# *About 20 minutes, difficulty 3 of 5.* One head. `z`, `i`, `f` and `o` are $(S, D)$; `weights` is $(4, D, D)$ in the order
# z, i, f, o. Begin with an empty memory and $h_0 = 0$. Return the answers, $(S, D)$.


# %% exercise="03.2"
def slstm_sequence(z, i, f, o, weights):
    pass  ### SOLUTION


# %%
check("03.2", slstm_sequence)

# %% [markdown]
# **An independent witness.** The rest of the lesson uses the package's `slstm.scan`. Here it meets the cell of the `xlstm`
# package. The two order their gates differently, i f z o there and z i f o here, so most of the next cell is bookkeeping.
# That is the usual price of comparing with other people's code, and where most mistakes hide.

# %% tags=["independent"]
batch, heads, length, width = 2, 2, 20, 4
theirs = sLSTMCell(sLSTMCellConfig(hidden_size=heads * width, num_heads=heads, backend="vanilla")).double()
generator = torch.Generator().manual_seed(0)
for parameter in theirs.parameters():
    parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
x = torch.randn(batch, length, 4, heads, width, generator=generator, dtype=torch.float64)  # i, f, z, o
expected, _ = theirs(x.flatten(2))
i, f, z, o = (x + theirs.bias.clone().detach().transpose(0, 1)).permute(2, 0, 3, 1, 4)  # each (B, H, S, D)
weights = theirs.recurrent_kernel.clone().detach().permute(0, 2, 3, 1)[:, [2, 0, 1, 3]]  # (H, 4, D, D)
difference = float((slstm.scan(z, i, f, o, weights) - expected).detach().abs().max())
assert difference < 1e-12
print(f"the two differ by at most {difference:.0e}")

# %% [markdown]
# ## 2 · Why one loop can be cut and the other cannot
#
# In the mLSTM every entry of the memory takes a step $c \mapsto g\,c + u$. The factor $g$ is the forget gate, the summand
# $u$ what is written. Both come from the token alone: they are known for all tokens before the first step is taken.
#
# Two such steps in a row make one such step. Which?

# %% [markdown]
# ### Exercise 03.3: two steps made one
#
# *About 10 minutes, difficulty 3 of 5.* A step is a tensor of two numbers, $(g, u)$. Return the step that does `first`, then
# `second`.


# %% exercise="03.3"
def join_steps(first, second):
    pass  ### SOLUTION


# %%
check("03.3", join_steps)

# %% [markdown]
# **Steps as matrices.** Write the memory as a column $(c, 1)$. Then a step is a matrix, and doing one step after another is
# a product of matrices:
#
# $$\begin{pmatrix} c \\ 1 \end{pmatrix} \mapsto \begin{pmatrix} g & u \\ 0 & 1 \end{pmatrix}
# \begin{pmatrix} c \\ 1 \end{pmatrix} .$$
#
# Products of matrices may be bracketed as one likes. So nobody has to begin at the first token. Join all neighbours, then
# all neighbouring pairs, then fours: each round doubles how far back every step reaches, and inside a round all products
# can be computed at once. The next cell does it for 1,024 tokens.

# %% tags=["nbval-check-output"]
generator = torch.Generator().manual_seed(2)
factor, summand = torch.rand(2, 1024, generator=generator, dtype=torch.float64)
steps = torch.zeros(1024, 2, 2, dtype=torch.float64)
steps[:, 0, 0], steps[:, 0, 1], steps[:, 1, 1] = factor, summand, 1

joined, reach, rounds = steps, 1, 0
while reach < len(joined):
    further = joined[reach:] @ joined[:-reach]  # all at once: what came before, then this
    joined, reach, rounds = torch.cat([joined[:reach], further]), 2 * reach, rounds + 1

c, by_loop = torch.zeros((), dtype=torch.float64), []
for t in range(1024):
    c = factor[t] * c + summand[t]
    by_loop.append(c)
assert torch.allclose(joined[:, 0, 1], torch.stack(by_loop))  # the column (0, 1) picks the summand
print(f"{len(by_loop):,} steps one by one, or {rounds} rounds: the same memories after every token")

# %% [markdown]
# The chunkwise form of lesson 02 rests on the same fact, with chunks in place of pairs.
#
# **And the sLSTM?** Its $g$ and $u$ contain $h_{t-1}$, and with it $c_{t-1}$ itself, inside an exponential and a tanh. Its
# step is not of the form $g\,c + u$ with known numbers. Two steps make a function that is more complicated than one, ten
# make one that nobody can write down. There is nothing to join: tokens must be taken in their order.
#
# A step $g\,c + u$ has a property that can be *measured*, and any number of such steps has it too: change the memory before
# by something, then by twice that, and the memory after changes by twice as much. Test it for three cells. Each reads five
# tokens; then its memory is changed; then it reads twenty more.

# %%
generator = torch.Generator().manual_seed(1)
q, k, v, z = torch.randn(4, 1, 1, 25, 4, generator=generator, dtype=torch.float64)
weights = torch.randn(1, 4, 4, 4, generator=generator, dtype=torch.float64)
zeros = torch.zeros_like(z)
of_mlstm, of_slstm = (q, k, v, zeros[..., 0], zeros[..., 0] + 3), (z, zeros, zeros + 3, zeros)


def with_mixing(*gates, **options):
    return slstm.scan(*gates, weights, **options)


def memory_after(change, cell, inputs, memory):
    """The memory after all tokens, if all of it is raised by `change` after the first five."""
    _, state = cell(*(x[:, :, :5] for x in inputs), return_state=True)
    state = state._replace(**{memory: getattr(state, memory) + change})
    _, state = cell(*(x[:, :, 5:] for x in inputs), initial_state=state, return_state=True)
    return getattr(state, memory)


# %% tags=["nbval-check-output"]
cells = {
    "mLSTM": (mlstm.recurrent, of_mlstm, "C"),
    "sLSTM without memory mixing": (slstm.scan, of_slstm, "c"),
    "sLSTM": (with_mixing, of_slstm, "c"),
}
for name, cell in cells.items():
    unchanged, once, twice = (memory_after(change, *cell) for change in (0, 1, 2))
    off = ((twice - unchanged) - 2 * (once - unchanged)).abs().max() / (once - unchanged).abs().max()
    print(f"{name:28} off by {float(off):.0%}")

# %% [markdown]
# The first two are linear in their memory and could be cut into pieces. Memory mixing alone makes the difference. And what
# does the loop cost? Here is the same number of tokens through both cells.


# %%
def seconds(cell, turns=3):
    """The best of some turns: other programs can only make it longer."""
    best = float("inf")
    for _ in range(turns):
        start = time.perf_counter()
        cell()
        best = min(best, time.perf_counter() - start)
    return best


lengths = choose(ci=(64, 256, 1024), cpu=(64, 256, 1024, 4096))
times = {"mLSTM, chunkwise": {}, "sLSTM, token by token": {}}
for length in tqdm(lengths):
    q, k, v = torch.randn(3, 1, 4, length, 32)
    i, f = torch.randn(2, 1, 4, length)
    gates, mixing = torch.randn(4, 1, 4, length, 32), torch.randn(4, 4, 32, 32) / 6
    times["mLSTM, chunkwise"][length] = seconds(lambda inputs=(q, k, v, i, f): mlstm.chunkwise(*inputs))
    times["sLSTM, token by token"][length] = seconds(lambda gates=gates, mixing=mixing: slstm.scan(*gates, mixing))

# %% tags=["figure"]
display(cost_curves(times))

# %% [markdown]
# The loop pays for every token. The chunkwise form hardly notices the length at first, as its few operations cost more to
# start than to do; on long sequences it is linear too, far below. On a graphics card the distance is wider still: there
# is more arithmetic to leave idle.
#
# ## 3 · What the loop is for
#
# **Parity.** Bits arrive one by one. After each, say whether the number of ones so far is odd. One bit of memory is
# enough. But look at what a 1 has to do to it: whatever is stored must turn into its **opposite**.
#
# **What an mLSTM can do.** Take two sequences whose first bits differ and all later bits agree. Their parities are opposite
# after every token. Their memories take the same steps, except for the first, so subtract one from the other:
#
# $$c_t - c'_t = (g\,c_{t-1} + u) - (g\,c'_{t-1} + u) = g\,(c_{t-1} - c'_{t-1}), \qquad 0 < g < 1 .$$
#
# The difference shrinks and keeps its sign. The two memories come closer and never change places. For parity they would
# have to change places at every 1: a step with $g = -1$, which no sigmoid gives. More layers and a larger network behind
# the memory can still get short sequences right, in other ways than by flipping a bit.
#
# **What an sLSTM can do.** Its next step depends on its own last answer. Meet a single unit that hears nothing else: at the
# first token it gets a push, $z_1 = 1$, and from then on $z_t = 0$. Its forget gate is nearly shut, its output gate open,
# so $h_t$ is about $\tanh(R_z h_{t-1})$. Set its recurrent weight to 4, 0.5, -0.5 and -4. What does it do each time?


# %% tags=["widget"]
def unit_alone(recurrent_weight, forget_gate):
    """The answers of one sLSTM unit after a push at the first token."""
    z, i, f, o = torch.zeros(4, 1, 1, 16, 1, dtype=torch.float64)
    z[:, :, 0], f[:], o[:] = 1.0, forget_gate, 40.0
    weights = torch.zeros(1, 4, 1, 1, dtype=torch.float64)
    weights[:, 0] = recurrent_weight
    h = slstm.scan(z, i, f, o, weights).flatten()
    curves = {"answer h": h, "nothing": torch.zeros(16)}
    return lines(range(1, 17), curves, x_label="token", y_label="answer of the unit", dashed=["nothing"])


look = {"continuous_update": False, "style": {"description_width": "12rem"}, "layout": {"width": "32rem"}}
explorer = Explorer(
    unit_alone,
    recurrent_weight=FloatSlider(value=4.0, min=-6.0, max=6.0, step=0.5, description="recurrent weight of z", **look),
    forget_gate=FloatSlider(value=-6.0, min=-6.0, max=6.0, step=1.0, description="forget gate f", **look),
)
display(explorer)

# %% [markdown]
# A large positive weight *holds* what it was given; a small one, of either sign, lets it fade; a large negative weight
# turns it over at every token. Now open the forget gate with the weight at -4: the unit averages over what it said before,
# and the flipping dies away. For parity you need a unit that flips on a 1 and holds on a 0.

# %% [markdown]
# ### Exercise 03.4: parity with one unit
#
# *About 25 minutes, difficulty 4 of 5.* No training: choose the numbers. `bits` is a tensor of $S$ zeros and ones. Return
# two tensors: `gates`, $(S, 4)$, with the pre-activations z, i, f, o of every token, each made from its own bit; and
# `weights`, 4 numbers, which the last answer is multiplied by before it is added to z, i, f, o. The check runs one sLSTM
# unit with them and reads an answer above 0 as *odd*. Gates at -40 and 40 are as good as shut and open.


# %% exercise="03.4"
def parity_unit(bits):
    pass  ### SOLUTION


# %%
check("03.4", parity_unit)

# %% [markdown]
# **Can it be learned?** Two small networks, one of each kind; the mLSTM gets two layers and the larger network behind them.
# Both read sequences of 2 to 16 bits and must give the parity after every bit. Then they are tested on longer ones.


# %%
class SLSTMReader(nn.Module):
    """Bits (B, S) to logits (B, S, 2) through one sLSTM of eight units."""

    def __init__(self, units=8):
        super().__init__()
        self.gates = nn.Linear(2, 4 * units)
        self.mixing = nn.Parameter(torch.randn(1, 4, units, units) / units**0.5)
        self.answer = nn.Linear(units, 2)

    def cell(self, bits):
        z, i, f, o = self.gates(F.one_hot(bits, 2).float()).unsqueeze(1).chunk(4, -1)  # (B, 1, S, units) each
        return slstm.scan(z, i, f + 1, o, self.mixing)[:, 0]

    def forward(self, bits):
        return self.answer(self.cell(bits))


class MLSTMReader(nn.Module):
    """Bits (B, S) to logits (B, S, 2) through two mLSTM layers of width 8, each with norm and residual."""

    def __init__(self, width=8, layers=2):
        super().__init__()
        self.width = width
        self.embed = nn.Linear(2, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.inputs = nn.ModuleList(nn.Linear(width, 3 * width + 2) for _ in range(layers))
        self.answer = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, 2))

    def forward(self, bits):
        x = self.embed(F.one_hot(bits, 2).float())
        for norm, inputs in zip(self.norms, self.inputs, strict=True):
            q, k, v, gates = inputs(norm(x)).unsqueeze(1).split([self.width] * 3 + [2], -1)  # (B, 1, S, ...)
            i, f = gates.unbind(-1)
            x = x + mlstm.parallel(q, k, v, i, f + 3)[:, 0]
        return self.answer(x)


# %%
def train(model, steps, learning_rate, longest=16, batch=64):
    """Train on random sequences of random length, once for each of `steps`; returns the losses."""
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(model.parameters(), learning_rate)
    losses = []
    for _ in steps:
        length = int(torch.randint(2, longest + 1, (), generator=generator))
        bits = torch.randint(2, (batch, length), generator=generator)
        loss = F.cross_entropy(model(bits).flatten(0, 1), (bits.cumsum(1) % 2).flatten())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


def share_right(model, length, sequences=256):
    """How often the answer after the last bit is right."""
    bits = torch.randint(2, (sequences, length), generator=torch.Generator().manual_seed(length))
    with torch.no_grad():
        return float((model(bits)[:, -1].argmax(-1) == bits.sum(1) % 2).float().mean())


# %%
steps = choose(ci=300, cpu=3000)
print(estimate(ci=5, cpu=25))
readers = {}
for name, network in {"sLSTM": SLSTMReader, "mLSTM": MLSTMReader}.items():
    torch.manual_seed(2)
    readers[name] = network()
    print(f"{name}: {sum(p.numel() for p in readers[name].parameters())} weights")
rates = {"sLSTM": 1e-2, "mLSTM": 3e-3}
curves = {name: train(reader, tqdm(range(steps), name), rates[name]) for name, reader in readers.items()}

# %% tags=["figure"]
window = 25
display(
    lines(
        range(window, steps + 1),
        {name: np.convolve(losses, np.ones(window) / window, "valid") for name, losses in curves.items()},
        x_label="step",
        y_label=f"loss, mean of {window} steps",
    )
)

# %% [markdown]
# Guessing has the loss $\log 2 \approx 0.69$. One network finds the rule. The other one improves too, more slowly. What has
# it learned? Test both on each length alone, inside the trained range and far outside.

# %% tags=["figure"]
tested = [1, 2, 4, 8, 16, 32, 64, 128]
right = {name: [share_right(reader, length) for length in tested] for name, reader in readers.items()}
display(lines(tested, right, x_label="bits in the sequence (trained: 2 to 16)", y_label="share right", log_x=True))

# %% tags=["surprise"]
for length, of_slstm, of_mlstm in zip(tested, *right.values(), strict=True):
    print(f"{length:3d} bits: sLSTM {of_slstm:4.0%} right, mLSTM {of_mlstm:4.0%} right; guessing gives 50%")
assert right["sLSTM"][tested.index(64)] > 0.9 > right["mLSTM"][tested.index(64)]

# %% [markdown]
# **A surprise to explain.** The loss of the mLSTM is well below guessing, and yet it is no better than guessing on long
# sequences, even on some of the lengths it was trained on. How can both be true?
#
# The loss is a mean over all places of sequences of many lengths. There are 2 different sequences of one bit, 4 of two
# bits, 16 of four: few enough to be learned one by one. Of sixteen bits there are 65,536. Right answers near the beginning
# lower the loss without any rule behind them. A loss that falls does not tell you which of the two has been learned; tests
# on longer sequences do.
#
# **What does the sLSTM do inside?** Here is the answer of its unit that goes along with the parity most closely.

# %% tags=["figure"]
bits = torch.randint(2, (1, 24), generator=torch.Generator().manual_seed(5))
with torch.no_grad():
    answers = readers["sLSTM"].cell(bits)[0]  # (24, units)
odd = (2 * (bits[0].cumsum(0) % 2) - 1).float()  # 1 or -1
agreement = torch.corrcoef(torch.cat([odd[None], answers.T]))[0, 1:]
unit = int(agreement.abs().argmax())
sign = int(agreement[unit].sign())
display(
    lines(
        range(1, 25),
        {f"answer of unit {unit}": answers[:, unit], f"parity, odd at {sign}": sign * odd},
        x_label="token",
        y_label="answer, parity",
        dashed=[f"parity, odd at {sign}"],
    )
)
print(f"correlation {float(agreement[unit]):.2f}")

# %% [markdown]
# **What does that mean for images?** A segmentation network has to gather evidence from far away, weigh it and find it
# again. That is what a large, linear memory is good at, over thousands of tokens. Few things in an image ask for a parity.
# xLSTM-UNet uses mLSTM blocks only.
#
# ## 4 · From cell to block to network
#
# A cell alone does not make a network. Around it stands what every deep network has: a norm before, a residual around,
# projections to make room. This is the Vision-LSTM block, the one that xLSTM-UNet uses. Read it from top to bottom:
#
#               x -------------------------------.
#               |                                |
#              norm                              |
#               |                                |
#               up                               |
#               |                                |
#          .----+------------------.             |
#          |                       |             |
#        memory                   gate           |
#          |                       |             |
#          +--------------.        |             |
#          |              |        |             |
#     convolution         |        |             |
#          |              |        |             |
#         SiLU            |       SiLU           |
#          |              |        |             |
#          +--------.     |        |             |
#          |        |     |        |             |
#        q, k     skip    v        |             |
#          |        |     |        |             |
#          '-- cell-|-----'        |             |
#                |  |              |             |
#                '--+----- times --'             |
#                            |                   |
#                           down                 |
#                            |                   |
#                            '------ plus -------'
#
# In words:
# * After the norm, `up` makes each token four times as wide. The first half is the memory's path, the second half the gate.
# * A convolution along the sequence lets each token see the three before it. Queries and keys are made from that; so they
#   can depend on a small neighbourhood. Values are made from before the convolution.
# * The cell is the mLSTM with a norm over each head. What went into queries and keys is added to its answer, times one
#   weight a channel: the small skip.
# * The gate decides channel by channel how much of that gets through. `down` brings it back to the width of the tokens, and
#   the residual adds it to them.

# %% [markdown]
# ### Exercise 03.5: a block from its parts
#
# *About 15 minutes, difficulty 4 of 5.* `x` is $(\mathrm{batch}, S, \mathrm{width})$. `parts` holds the layers under the
# names of the drawing: `parts.norm`, `parts.up`, `parts.conv`, `parts.q`, `parts.k`, `parts.v`, `parts.cell` (called with
# queries, keys and values), `parts.skip` (weights, one a channel), `parts.down`. SiLU is `F.silu`.


# %% exercise="03.5"
def vil_block(x, parts):
    pass  ### SOLUTION


# %%
check("03.5", vil_block)

# %% [markdown]
# Where are the weights of a block? The package's own, for tokens of width 32:

# %% tags=["nbval-check-output"]
block = ViLBlock(32, "v1")
shares = {}
for name, parameter in block.named_parameters():
    part = name.removeprefix("layer.").split(".")[0]
    shares[part] = shares.get(part, 0) + parameter.numel()
for part, count in shares.items():
    print(f"{part:6} {count:5d} weights")
assert block(torch.zeros(1, 10, 32), (10,)).shape == (1, 10, 32)

# %% [markdown]
# Most are in the two projections. The cell has those that make the gates, and its norm. The matrix memory itself has none:
# it is made anew from every sequence.
#
# **A stack of both.** The `xlstm` package stacks such blocks for language, and lets you say which of them hold an sLSTM.
# Here are four blocks; the second is an sLSTM with a small feed-forward network behind it.

# %%
stack = xLSTMBlockStack(
    xLSTMBlockStackConfig(
        mlstm_block=mLSTMBlockConfig(mlstm=mLSTMLayerConfig(conv1d_kernel_size=4, qkv_proj_blocksize=4, num_heads=4)),
        slstm_block=sLSTMBlockConfig(
            slstm=sLSTMLayerConfig(backend="vanilla", num_heads=4, conv1d_kernel_size=4),
            feedforward=FeedForwardConfig(proj_factor=1.3, act_fn="gelu"),
        ),
        context_length=64,
        num_blocks=4,
        embedding_dim=32,
        slstm_at=[1],
    )
)
with torch.no_grad():
    answer = stack(torch.randn(2, 64, 32))
assert answer.shape == (2, 64, 32)
for place, part in enumerate(stack.blocks):
    print(f"block {place}: {type(part).__name__}, {sum(p.numel() for p in part.parameters())} weights")

# %% [markdown]
# **Is their mLSTM block the Vision-LSTM block?** It has as many weights as the one above, 8,936. So let the package's block
# read the weights of theirs. Names differ, and they keep input and forget gates in two layers where the package has one;
# the rest must fit as it is. Then both read the same tokens. (First all weights are drawn anew: a fresh block has gates
# without weights and norms of scale 1, which would hide a mistake.)

# %% tags=["independent"]
NAMES = {  # theirs, the package's
    "xlstm_norm.": "norm.",
    "xlstm.": "layer.",
    "proj_up.": "up.",
    "proj_down.": "down.",
    "conv1d.": "conv.",
    "_proj.": ".",
    "mlstm_cell.": "cell.",
    "outnorm.": "norm.",
    "learnable_skip": "skip",
}
theirs, ours = stack.blocks[0].double(), ViLBlock(32, "v1").double()
generator = torch.Generator().manual_seed(0)
for parameter in theirs.parameters():
    parameter.data.normal_(std=0.5, generator=generator)
state = theirs.state_dict()
for kind in ("weight", "bias"):
    apart = [state.pop(f"xlstm.mlstm_cell.{gate}.{kind}") for gate in ("igate", "fgate")]
    state[f"xlstm.mlstm_cell.gates.{kind}"] = torch.cat(apart)
renamed = {}
for name, tensor in state.items():
    for old, new in NAMES.items():
        name = name.replace(old, new)
    renamed[name] = tensor
ours.load_state_dict(renamed)  # refuses a name or a shape that does not fit
x = torch.randn(2, 50, 32, generator=generator, dtype=torch.float64)
with torch.no_grad():
    difference = float((ours(x, (50,)) - theirs(x)).abs().max())
assert difference < 1e-9
print(f"the two blocks differ by at most {difference:.0e}")

# %% [markdown]
# They are one function. Version 1 of Vision-LSTM took the block of language models as it was; what is new is the walk
# over the image. (A detail: `xlstm` rounds the inner width, twice that of the tokens, up to a multiple of 64. At a width
# that 32 does not divide, the two would differ.)
#
# Every block takes tokens and gives tokens of the same shape, so they can be stacked in any order and number. That is the
# whole architecture of xLSTM. Lesson 04 feeds it images.

# %%
progress("03")

# %% [markdown]
# ## Key points
#
# * The gates of an sLSTM hear its last answers. That makes it a true loop: nothing to join, one token after the other.
# * The step of an mLSTM is $g\,c + u$ with $g$ and $u$ from the token. Such steps can be joined in any grouping; and they
#   cannot turn over what is stored.
# * Parity needs one bit of memory that is turned over. One sLSTM unit can do it; a small sLSTM learns it from sequences of
#   up to 16 bits and follows it over many more.
# * A falling loss does not show that a rule was learned. Test beyond the training range.
# * A block is a cell with norm, projections, convolution, gate and residual around it. Most weights are in the projections.
#
# ## What could go wrong
#
# * *Two implementations differ wildly.* The order of gates and heads, long before the mathematics.
# * *Your unit is wrong only for sequences that begin with 0.* An empty memory takes in its first token whatever the input
#   gate says, as $c_1 / n_1 = \tanh(\hat z_1)$.
# * *A model is right in training and guesses on longer sequences.* It learned cases and not the rule.
# * *An sLSTM on an image is slow.* Every token waits for the one before it.

# %% [markdown]
# ## An open question
#
# Let forget gates run from -1 to 1 in place of 0 to 1. The recurrence stays linear, so it can still be cut into chunks.
# Can an mLSTM then track parity? What of counting modulo 3? And what becomes of $\log\sigma(\hat f_t)$, on which all of
# lesson 02 rests?

# %% [markdown]
# ## Further reading
#
# * Beck et al., *xLSTM: Extended Long Short-Term Memory*, arXiv 2405.04517, section 2.2 and appendix A.2.
# * Merrill, Petty and Sabharwal, *The Illusion of State in State-Space Models*, arXiv 2404.08819.
# * Grazzi et al., *Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues*, arXiv 2411.12537.
# * Blelloch, *Prefix Sums and Their Applications*, Carnegie Mellon University, CMU-CS-90-190 (1990).

# %% [markdown] tags=["instructor"]
# **For instructors.** Plan 110 minutes: 35 for the cell, 20 for cutting loops, 35 for parity, 20 for blocks. Exercise 03.4
# is the hard one; let everybody play with the widget first, and give the first hint after ten minutes. A good discussion:
# what would count as proof that the mLSTM *cannot* learn parity, as against "did not, here"? The argument with two
# sequences is about one memory; for stacks of layers at finite precision see Merrill et al. and Grazzi et al.
