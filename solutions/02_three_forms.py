# %% [markdown] seconds={"ci": 45, "cpu": 300, "gpu": 300} gigabytes={"ci": 2.5, "cpu": 6, "gpu": 8}
# # 02 · Three forms of one function: recurrent, parallel, chunkwise
#
# The recurrence of lesson 01 reads one token at a time. A feature map of 80 x 80 positions is a sequence of 6,400 tokens:
# 6,400 small steps, each waiting for the one before. But the mLSTM is *linear in its memory*. So the loop can be unrolled
# into one matrix, and the matrix can be cut into blocks. Three programs, one function. You derive all three, prove them
# equal, measure what each costs, and choose.
#
# **You will be able to**
# * unroll the recurrence into a matrix of weights and write the parallel form,
# * cut that matrix into chunks joined by a memory and write the chunkwise form,
# * show that the forms are equal, and say how far apart float64, float32 and bfloat16 put them,
# * predict and measure how time and memory grow with the length, and choose a chunk size.
#
# **Time.** 1 minute of computing in profile `cpu` (measured on 2 cores, 1.5 GB of memory), 97 minutes of exercises.
#
# **You need** lesson 01: the mLSTM token by token, its normaliser and its stabiliser. Its exercises may be unsolved; this
# lesson uses the package's functions.
#
# **Words.** A [chunk](../docs/glossary.md#chunk) is a run of neighbouring tokens; the
# [matrix memory](../docs/glossary.md#matrix-memory) carries what came before it. The
# [stabiliser](../docs/glossary.md#stabiliser) keeps exponentials from overflowing. A cost is *linear* in the length if
# twice the length costs twice as much, *quadratic* if it costs four times as much.
#
# **Symbols.**
# * $S$, $c$: number of tokens, and number of tokens in a chunk.
# * $D$, $V$: width of a head's keys and of its values.
# * $t$, $s$, $j$: tokens; $t$ answers, $s$ was stored, $j$ lies between them.
# * $p$: the last token before a chunk.
# * $q_t$, $k_t$, $v_t$, $h_t$: query, key, value and answer of a token, as rows.
# * $i_t$, $f_t$, $a_t$: gate pre-activations, and the logarithm $a_t = \log\sigma(f_t)$ of the forget gate.
# * $\sigma$, $e$: the sigmoid, and the base of the exponential.
# * $W_t$: what token $t$ writes, before its input gate.
# * $C_t$, $n_t$: matrix memory and normaliser after token $t$.
# * $m_t$, $\tilde C_t$, $\tilde n_t$: stabiliser, and memory and normaliser as stored, divided by $e^{m_t}$.
# * $B_t$, $b_t$: sum of $a_1$ to $a_t$; sum of the $a_j$ of a chunk up to token $t$.
# * $\Delta$: the sum of all $a_j$ of a chunk.
# * $\ell_{ts}$: the logarithm of what token $s$ weighs in the memory after token $t$.
# * $w_{ts}$, $A_{ts}$: that weight divided by $e^{m_t}$, and the weight times how well query and key fit.

# %%
import logging
import math
import time

import torch
import torch.nn.functional as F
from IPython.display import display
from mlstm_kernels.torch import get_mlstm_kernel
from tqdm.auto import tqdm

# While it is loaded, xlstm looks for a graphics card, and PyTorch logs a warning where there is none.
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

from xlstm.blocks.mlstm.backends import parallel_stabilized_simple

from xlstm_unet_lab.course import check, choose, estimate, hint, progress, reveal
from xlstm_unet_lab.course.pictures.comparison import cost_curves, error_ladder, fitted_slope, lines
from xlstm_unet_lab.course.pictures.explorers import chunk_size_explorer, kept_bytes
from xlstm_unet_lab.course.pictures.mechanisms import chunk_structure
from xlstm_unet_lab.course.pictures.mechanisms import decay_matrix as picture_of_decay
from xlstm_unet_lab.ops import mlstm

# %% [markdown]
# ## 1 · Unrolling
#
# Take the recurrence of lesson 01 as it was before the stabiliser. Call what token $t$ writes
# $W_t = \tfrac{1}{\sqrt D}\, k_t^\top v_t$, a matrix. Then
#
# $$C_t = \sigma(f_t)\, C_{t-1} + e^{i_t}\, W_t, \qquad C_0 = 0 .$$
#
# Insert each line into the next one:
#
# $$C_1 = e^{i_1} W_1$$
#
# $$C_2 = \sigma(f_2)\, e^{i_1} W_1 + e^{i_2} W_2$$
#
# $$C_3 = \sigma(f_3)\, \sigma(f_2)\, e^{i_1} W_1 + \sigma(f_3)\, e^{i_2} W_2 + e^{i_3} W_3$$
#
# The pattern: token $s$ is written with $e^{i_s}$, and every **later** token multiplies it by its forget gate. A token's
# own forget gate does not touch it, because forgetting comes before writing. So
#
# $$C_t = \sum_{s \le t} \Big(\prod_{j=s+1}^{t} \sigma(f_j)\Big)\, e^{i_s}\, W_s .$$
#
# That is a claim about a program, so try it. The next cell computes the memory after six tokens in both ways.

# %%
generator = torch.Generator().manual_seed(0)
q, k, v = torch.randn(3, 1, 1, 6, 4, generator=generator, dtype=torch.float64)  # 1 sequence, 1 head, 6 tokens, width 4
i, f = torch.randn(2, 1, 1, 6, generator=generator, dtype=torch.float64)

_, state = mlstm.recurrent(q, k, v, i, f, return_state=True)
by_loop = state.C[0, 0] * state.m[0, 0].exp()  # the package stores the memory divided by exp(m)

by_sum = torch.zeros(4, 4, dtype=torch.float64)
for s in range(6):
    written = torch.outer(k[0, 0, s], v[0, 0, s]) / math.sqrt(4)
    by_sum += torch.sigmoid(f[0, 0, s + 1 :]).prod() * i[0, 0, s].exp() * written

assert torch.allclose(by_loop, by_sum, rtol=1e-12)
print(f"loop and sum differ by at most {float((by_loop - by_sum).abs().max()):.0e}")

# %% [markdown]
# **From products to sums.** A product of many numbers below 1 underflows, and it has to be computed anew for each pair
# of tokens. Take the logarithm. The product becomes a sum of $a_j = \log\sigma(f_j)$, and the sum over a stretch is the
# difference of two running sums:
#
# $$\log \prod_{j=s+1}^{t} \sigma(f_j) = \sum_{j=s+1}^{t} a_j = B_t - B_s, \qquad B_t = \sum_{j=1}^{t} a_j .$$
#
# So token $s$ weighs $e^{\ell_{ts}}$ in the memory after token $t$, with
#
# $$\ell_{ts} = B_t - B_s + i_s \;\; (s \le t), \qquad \ell_{ts} = -\infty \;\; (s > t).$$
#
# The second case is the future, which weighs nothing: $e^{-\infty} = 0$. For three tokens, the rows being $t$ and the
# columns $s$:
#
# $$\ell = \begin{pmatrix} i_1 & -\infty & -\infty \\ a_2 + i_1 & i_2 & -\infty \\ a_2 + a_3 + i_1 & a_3 + i_2 & i_3
# \end{pmatrix}$$
#
# This is the **decay matrix**. Its $S \times S$ numbers say all there is to say about the gates. Here is one for 48
# tokens. One token has a strong input gate; at another, the forget gate shuts. Find both before you read on.

# %% tags=["figure"]
generator = torch.Generator().manual_seed(3)
i = 0.5 * torch.randn(48, generator=generator)
f = 3 + 0.5 * torch.randn(48, generator=generator)
i[18], f[30] = 4.0, -3.0
display(picture_of_decay(i, f))

# %% [markdown]
# The strong input gate is the **column** at token 18, bright in the right-hand picture: all later tokens hear that one. The
# shut forget gate is the **edge** at row 30, plain in the left-hand picture: from there on, all that came before is weak.

# %% [markdown]
# ### Exercise 02.1: the decay matrix
#
# *About 12 minutes, difficulty 2 of 5.* `i` and `f` have length $S$. Return the $(S, S)$ matrix of $\ell_{ts}$, row $t$,
# column $s$.


# %% exercise="02.1"
def decay_matrix(i, f):
    pass  ### SOLUTION


# %%
check("02.1", decay_matrix)

# %% [markdown]
# ## 2 · The parallel form
#
# The answer reads the memory with a query. Insert the sum. As $q_t k_s^\top = q_t \cdot k_s$ is a number,
#
# $$q_t C_t = \sum_{s \le t} e^{\ell_{ts}}\, q_t W_s = \sum_{s \le t} e^{\ell_{ts}}\, \frac{q_t \cdot k_s}{\sqrt D}\, v_s .$$
#
# The normaliser is the same memory fed with the value 1 in place of $v_s$, so the same sum without the values:
#
# $$q_t \cdot n_t = \sum_{s \le t} e^{\ell_{ts}}\, \frac{q_t \cdot k_s}{\sqrt D}, \qquad
# h_t = \frac{q_t C_t}{\max(|q_t \cdot n_t|,\, 1)} .$$
#
# Nothing on the right waits for an earlier answer. All rows can be computed at once.
#
# **The stabiliser, again.** $e^{\ell_{ts}}$ can overflow. Numerator and denominator of row $t$ may both be divided by the
# same $e^{m_t}$. Take the largest exponent of the row, $m_t = \max_s \ell_{ts}$: then the largest weight is exactly 1. The
# floor 1 becomes $e^{-m_t}$, as in lesson 01.
#
# It is even the same $m_t$. Look at the matrix of three tokens above: row $t$ is row $t - 1$ with $a_t$ added, and $i_t$
# at its end. So the largest entry of row $t$ is either $a_t$ plus the largest of row $t - 1$, or $i_t$:
#
# $$m_t = \max_{s \le t} \ell_{ts} = \max(a_t + m_{t-1},\; i_t) .$$
#
# **All together.** With $w_{ts} = e^{\ell_{ts} - m_t}$ and $A_{ts} = w_{ts}\, \frac{q_t \cdot k_s}{\sqrt D}$,
#
# $$h_t = \frac{\sum_s A_{ts}\, v_s}{\max\!\big(\big|\sum_s A_{ts}\big|,\; e^{-m_t}\big)} .$$
#
# $A$ is a matrix made in one product, $q k^\top$, and $A v$ is a second one. This looks like attention. There are two
# differences: the exponential acts on the gates and not on $q_t \cdot k_s$; and so entries of $A$ may be negative and
# cancel, which is why the sum stands between bars and has a floor.

# %% [markdown]
# ### Exercise 02.2: all tokens at once
#
# *About 20 minutes, difficulty 3 of 5.* `q` and `k` are $(S, D)$, `v` is $(S, V)$, and `exponents` is the decay matrix of
# 02.1. Return the answers, $(S, V)$, without a loop. (The package adds $10^{-6}$ to the denominator; leave that out.)


# %% exercise="02.2"
def parallel(q, k, v, exponents):
    pass  ### SOLUTION


# %%
check("02.2", parallel)

# %% [markdown]
# ## 3 · Cutting the matrix
#
# The parallel form has no loop, but its matrix is quadratic in the length. Here are the weights of one head:

# %% tags=["nbval-check-output"]
for side in (20, 40, 80):
    positions = side * side
    print(f"{side} x {side} positions: {positions:5,} tokens, {positions**2:10,} weights")

# %% [markdown]
# The **chunkwise form** takes the better half of each. Cut the sequence into chunks of $c$ tokens. Inside a chunk use
# the matrix. What came before the chunk, however long, is summed up in the memory at its beginning.

# %% tags=["figure"]
display(chunk_structure(48, 12))

# %% [markdown]
# Dark triangles are computed, light rectangles are not: one memory stands for each. Two things have to be derived.
#
# **What a token hears of the past.** Let $p$ be the last token before the chunk, and $t$ a token inside. For an older
# token $s \le p$ the way from $s$ to $t$ leads through $p$:
#
# $$\ell_{ts} = B_t - B_s + i_s = (B_t - B_p) + (B_p - B_s + i_s) = b_t + \ell_{ps} .$$
#
# Here $b_t = B_t - B_p$ is the sum of the $a_j$ of the chunk alone, up to token $t$. It does not depend on $s$, so it can
# be taken out of the sum over the past, and what stays behind is the memory after token $p$:
#
# $$\sum_{s \le p} e^{\ell_{ts}}\, \frac{q_t \cdot k_s}{\sqrt D}\, v_s
# = e^{b_t} \sum_{s \le p} e^{\ell_{ps}}\, q_t W_s = e^{b_t}\, q_t C_p .$$
#
# This line is the whole trick. All of the past, in one product with a $D \times V$ matrix.
#
# **With the stabiliser.** Stored is $\tilde C_p = C_p\, e^{-m_p}$, and row $t$ is divided by $e^{m_t}$. Hence the factor of
# the past is $e^{b_t + m_p - m_t}$, and
#
# $$h_t = \frac{\sum_{s > p} A_{ts}\, v_s + e^{b_t + m_p - m_t}\, q_t \tilde C_p}
# {\max\!\big(\big|\sum_{s > p} A_{ts} + e^{b_t + m_p - m_t}\, q_t \cdot \tilde n_p\big|,\; e^{-m_t}\big)} .$$
#
# The largest exponent of row $t$ is either inside the chunk or in the past, where it is $b_t$ plus the largest of row $p$:
#
# $$m_t = \max\big(\max_{p < s \le t} \ell_{ts},\; b_t + m_p\big) .$$
#
# **Handing on the memory.** After the chunk, the old memory has passed through all its forget gates, and the chunk has
# added what its own tokens wrote. With $\Delta$ the sum of the chunk's $a_j$,
#
# $$C_{\mathrm{after}} = e^{\Delta}\, C_{\mathrm{before}} + C_{\mathrm{own}}, \qquad\text{stored:}\qquad
# e^{m_{\mathrm{after}}}\, \tilde C_{\mathrm{after}} = e^{\Delta + m_{\mathrm{before}}}\, \tilde C_{\mathrm{before}}
# + e^{m_{\mathrm{own}}}\, \tilde C_{\mathrm{own}} .$$

# %% [markdown]
# ### Exercise 02.3: two memories made one
#
# *About 10 minutes, difficulty 3 of 5.* Two memories are stored, each divided by its own $e^m$: `first`, made before a
# chunk, and `second`, made by the chunk alone. `decay` is the chunk's $\Delta$. Return the memory after the chunk, also
# divided by an $e^m$: by the one for which no exponential can overflow.


# %% exercise="02.3"
def join(first, m_first, second, m_second, decay):
    pass  ### SOLUTION


# %%
check("02.3", join)

# %% [markdown]
# What will it cost? Count before you write it. In each chunk of $c$ tokens there are four matrix products: queries times
# keys, weights times values, queries times memory, and keys times values for the memory of the next chunk. A matrix of 3
# rows and 5 columns times one of 5 rows and 7 columns takes 3 times 5 times 7 multiplications.

# %% [markdown]
# ### Exercise 02.4: count the multiplications
#
# *About 10 minutes, difficulty 3 of 5.* How many do these products take, for all chunks of one head? Values are as wide
# as keys, $V = D$; $c$ divides $S$; count a chunk's square in full, although half of it is masked.


# %% exercise="02.4"
def multiplications(length, width, chunk_size):
    pass  ### SOLUTION


# %%
check("02.4", multiplications)

# %% [markdown]
# ### Exercise 02.5: the chunkwise form
#
# *About 45 minutes, difficulty 5 of 5.* This is the heart of the lesson. Go through the chunks in order and carry
# $\tilde C$, $\tilde n$ and $m$ along, empty at first: $0$, $0$ and $-\infty$. In each chunk compute $b_t$ and the chunk's
# own decay matrix, then $m_t$, then $A$, then the answers, then the memory for the next chunk. The last chunk may be
# shorter. `mlstm.decay_matrix(i, f)` is the package's 02.1, should yours not be done.


# %% exercise="02.5"
def chunkwise(q, k, v, i, f, chunk_size):
    pass  ### SOLUTION


# %%
check("02.5", chunkwise)

# %% [markdown]
# ## 4 · The equivalence ladder
#
# Equal on paper is not equal in a computer. From here on the package's forms are used; they take batches and heads,
# $(\mathrm{batch}, \mathrm{heads}, S, D)$, and have a backward pass. The ladder has six rungs: the package's three forms,
# the chunkwise one with an awkward chunk size; the formula of section 2 typed in as it stands, plus the $10^{-6}$; the
# parallel form of the `xlstm` package; and a chunkwise kernel of `mlstm_kernels`, both by the authors of xLSTM. All are
# compared with the recurrence in float64: their answers, and their gradients with respect to all five inputs.


# %%
def as_it_stands(q, k, v, i, f, eps=1e-6):
    """The parallel form of section 2, every step in the dtype of its input."""
    summed = F.logsigmoid(f).cumsum(-1)
    exponents = summed[..., :, None] - summed[..., None, :] + i[..., None, :]
    exponents = exponents.masked_fill(torch.ones_like(exponents, dtype=torch.bool).triu(1), -torch.inf)
    m = exponents.amax(-1, keepdim=True)
    attention = q @ k.mT / math.sqrt(k.shape[-1]) * torch.exp(exponents - m)
    return attention @ v / (torch.maximum(attention.sum(-1, keepdim=True).abs(), torch.exp(-m)) + eps)


def of_xlstm(q, k, v, i, f):
    return parallel_stabilized_simple(q, k, v, i[..., None], f[..., None])


def of_mlstm_kernels(q, k, v, i, f, **options):
    return get_mlstm_kernel("chunkwise--native_autograd")(q, k, v, i, f, chunk_size=64, **options)


OURS = {
    "recurrent": mlstm.recurrent,
    "parallel": mlstm.parallel,
    "chunkwise, chunks of 37": lambda *inputs: mlstm.chunkwise(*inputs, chunk_size=37),
}
OTHERS = {
    "formula as it stands": as_it_stands,
    "xlstm, parallel": of_xlstm,
    "mlstm_kernels, chunkwise": of_mlstm_kernels,
}


# %%
def tokens(length, width=32, heads=2, dtype=torch.float64, seed=0):
    """Random q, k, v, i, f as networks have them: forget gates open, input gates around 0."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 1, heads, length, width, generator=generator, dtype=torch.float64)
    i, f = torch.randn(2, 1, heads, length, generator=generator, dtype=torch.float64)
    return [x.to(dtype).requires_grad_() for x in (q, k, v, i, f + 4)]


def with_gradients(form, inputs):
    """The answers, and the gradients of a weighted sum of them with respect to every input."""
    h = form(*inputs)
    weights = torch.linspace(-1, 1, h.numel(), dtype=torch.float64).view_as(h).to(h.dtype)
    return [h.detach(), *torch.autograd.grad((h * weights).sum(), inputs)]


def difference(found, expected):
    """The largest difference, as a part of the largest value."""
    return float((found.double() - expected).abs().max() / expected.abs().max())


def climb(forms, dtype, length=128):
    """For each form in `dtype`, how far answers and gradients are from the recurrence in float64."""
    inputs = tokens(length, dtype=dtype)
    exact = [x.detach().double().requires_grad_() for x in inputs]  # the same rounded numbers
    expected = with_gradients(mlstm.recurrent, exact)
    for name, form in forms.items():
        answer, *gradients = map(difference, with_gradients(form, inputs), expected)
        yield name, answer, max(gradients)


# %% tags=["independent"]
for name, answer, gradient in climb(OURS | OTHERS, torch.float64):
    print(f"float64  {name:24} answers {answer:.0e}, gradients {gradient:.0e}")
    assert max(answer, gradient) < (1e-4 if "kernels" in name else 1e-11), name

# %% [markdown]
# Five rungs agree to the last digits of float64, forward and backward. The last one stops short, by far more than
# rounding. Is it wrong? Two facts help. `mlstm_kernels` begins with $m_0 = 0$ where the others begin with $-\infty$. And
# it adds its $10^{-6}$ to a denominator that was divided by *its* $e^{m_t}$: in another unit, another amount. If that is
# all, there must be no difference when nothing is added. Ask for that:

# %%
inputs = [x.detach() for x in tokens(128)]
gap = difference(of_mlstm_kernels(*inputs, eps=0.0), as_it_stands(*inputs, eps=0.0))
assert gap < 1e-12
print(f"mlstm_kernels and the formula, both with nothing added: {gap:.0e}")

# %% [markdown]
# A ladder with exact rungs shows such things at once. In float32 it would have passed for rounding.
#
# **Shorter numbers.** float32 has about 7 digits, bfloat16 between 2 and 3. Climb again:

# %%
for dtype in (torch.float32, torch.bfloat16):
    for name, answer, gradient in climb(OURS | {"formula as it stands": as_it_stands}, dtype):
        print(f"{str(dtype)[6:]:8} {name:24} answers {answer:.0e}, gradients {gradient:.0e}")

# %% [markdown]
# Look at the gradients of the formula in bfloat16: nobody could train with them. Does it get worse with the length? Make a
# guess for the package's forms and for the formula, then measure the error of the answers.

# %%
print(estimate(ci=3, cpu=8))
lengths = choose(ci=(32, 128, 512), cpu=(32, 128, 512, 2048))
compared = {"formula": as_it_stands, "recurrent": mlstm.recurrent, "chunkwise": mlstm.chunkwise}
errors = {}
for length in tqdm(lengths):
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [x.detach() for x in tokens(length, dtype=dtype)]
        expected = mlstm.parallel(*(x.double() for x in inputs))
        for name, form in compared.items():
            row = errors.setdefault(f"{name}, {str(dtype)[6:]}", {})
            row[length] = difference(form(*inputs), expected)

# %% tags=["figure"]
display(error_ladder(errors))

# %% [markdown]
# The package's forms soon stay level; the formula gets worse and worse. In float32 and in bfloat16 the reason is the same.
# $|B_t|$ grows with the length, and $\ell_{ts}$ needs the *difference* of two such numbers, which may be small. Between 32
# and 64, numbers of bfloat16 are 1/4 apart. So $B_t - B_s$ can be off by as much, and the weight by a quarter of itself.
#
# The package sums gates in float64 and computes everything else in at least float32, whatever comes in. What is left of
# the error in bfloat16 is the rounding of the answer itself.
#
# ## 5 · What the length costs
#
# Three forms, two costs. Before you run the next cells, predict six slopes: on logarithmic axes, time and memory against
# length are straight lines, with slope 1 if linear and slope 2 if quadratic.
#
# Time is taken forward and backward. Memory is what autograd keeps for the backward pass, which is what fills a graphics
# card in training. It needs no clock: `kept_bytes` adds up the tensors that are kept.


# %%
def seconds(form, inputs, turns=3):
    """Forward and backward, the best of some turns: other programs can only make it longer."""
    best = math.inf
    for _ in range(turns):
        start = time.perf_counter()
        with_gradients(form, inputs)
        best = min(best, time.perf_counter() - start)
    return best


# %%
print(estimate(ci=5, cpu=20))
lengths = choose(ci=(128, 256, 512), cpu=(256, 512, 1024, 2048, 4096))
longest = {"recurrent": choose(ci=256, cpu=1024), "parallel": max(lengths), "chunkwise": max(lengths)}
times, memory = {name: {} for name in mlstm.FORMS}, {name: {} for name in mlstm.FORMS}
for name, form in tqdm(mlstm.FORMS.items()):
    for length in lengths:
        if length <= longest[name]:
            inputs = tokens(length, dtype=torch.float32)
            times[name][length] = seconds(form, inputs)
            memory[name][length] = kept_bytes(form, inputs)

# %% tags=["figure"]
display(cost_curves(times, memory))

# %%
for name, kept in memory.items():
    print(
        f"{name:10} time grows with slope {fitted_slope(times[name]):.1f}, memory with slope {fitted_slope(kept):.1f}"
    )
    assert (fitted_slope(kept) > 1.5) == (name == "parallel")
share = memory["parallel"][max(lengths)] / memory["chunkwise"][max(lengths)]
print(f"at {max(lengths)} tokens the parallel form keeps {share:.0f} times as much as the chunkwise form")

# %% [markdown]
# Memory shows the slopes clearly. Time shows them only for long sequences: on short ones every operation has a fixed
# cost, which hides the work. Did you expect the recurrence to keep so much? Run without training, it needs one memory of
# $D \times V$ numbers. For the backward pass it keeps several such matrices for **every token**. (The package's chunkwise
# form keeps the squares of the last 1,024 tokens only and computes the others again, so it may rise less than linearly.)
#
# ## 6 · Choosing a chunk size
#
# **A surprise to explain.** Your count of exercise 02.4, $2 S c D + 2 S D^2$, grows with $c$. By arithmetic the smallest
# chunks are the cheapest, down to $c = 1$, the loop of lesson 01. Which chunks are fastest on this machine? Guess, then
# measure.

# %%
length, width = choose(ci=512, cpu=1024), 64
sizes = choose(ci=(1, 4, 16, 64, 256), cpu=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512))
inputs = tokens(length, width, dtype=torch.float32)
measured, kept, counted = {}, {}, {}
for size in sizes:
    measured[size] = seconds(lambda *x, size=size: mlstm.chunkwise(*x, chunk_size=size), inputs)
    kept[size] = kept_bytes(lambda *x, size=size: mlstm.chunkwise(*x, chunk_size=size), inputs)
    counted[size] = 2 * length * size * width + 2 * length * width**2

# %% tags=["figure"]
curves = {"time, measured": measured, "memory, measured": kept, "multiplications, counted": counted}
display(
    lines(
        sizes,
        {name: [values[size] / min(values.values()) for size in sizes] for name, values in curves.items()},
        x_label="tokens a chunk",
        y_label="relative to the smallest",
        log_x=True,
        log_y=True,
        dashed=["multiplications, counted"],
    )
)

# %% tags=["surprise"]
best = min(measured, key=measured.get)
print(f"fastest here: chunks of {best}")
print(f"chunks of 1 take {counted[best] / counted[1]:.1f} times fewer multiplications")
print(f"and {measured[1] / measured[best]:.1f} times as much time")

# %% [markdown]
# Why? A processor is not paid by the multiplication. It multiplies many numbers at once, which small matrices do not
# have. And each chunk's memory has to be written and read again: small chunks move more numbers than they multiply. Larger
# chunks do more arithmetic with less traffic. Beyond some size the arithmetic wins after all.
#
# **Memory has a best size too,** and this one can be derived. For the backward pass each of the $S / c$ chunks keeps its
# square of $c \cdot c$ weights and its memory of $D \cdot V$ numbers, together
#
# $$\frac{S}{c}\,\big(c^2 + D V\big) = S\,\Big(c + \frac{D V}{c}\Big) .$$
#
# The derivative with respect to $c$ is $S\,(1 - D V / c^2)$. It is zero at $c = \sqrt{D V}$, which for $V = D$ is the width
# itself. Compare:

# %%
smallest = min(kept, key=kept.get)
print(f"width {width}: the least memory is kept with chunks of {smallest} tokens; derived: {width}")
assert smallest == width

# %% [markdown]
# Now choose for a narrower head, of width 32, and 1,024 tokens. Move the slider by mouse or with the arrow keys; every
# size is measured once and stays in the diagram. Which size would you take, and does the best time lie where the least
# memory does?

# %% tags=["widget"]
explorer = chunk_size_explorer()
display(explorer)

# %%
progress("02")

# %% [markdown]
# ## Key points
#
# * Unrolled, the mLSTM is a matrix of weights $e^{B_t - B_s + i_s}$ times $q_t \cdot k_s$: attention with gates in place of
#   the softmax.
# * The way from an old token leads through the last token before the chunk. So one memory stands for the whole past.
# * Recurrent, parallel and chunkwise are one function. Test that: in float64, with gradients, at awkward lengths.
# * Sums of gates lose digits in short numbers, because their differences count. Sum them in long ones.
# * Parallel is quadratic in the length, the other two are linear. Chunks are the fast way to be linear.
# * Multiplications are a poor clock.
#
# ## What could go wrong
#
# * *Equal at 64 tokens, different at 65.* The last, shorter chunk.
# * *Right in float64, wrong in float32 on long sequences.* Differences of large sums of gates. Sum in float64.
# * *The sizes agree, the signs do not.* The absolute value around the denominator, or rows and columns exchanged.
# * *Two implementations agree to six digits and no further.* The $10^{-6}$ in the denominator, in different units.
# * *Out of memory in training, though the forward pass fits.* Count what is kept for the backward pass.

# %% [markdown]
# ## An open question
#
# Inside a chunk the square is computed in full although half of it is masked. Chunks inside chunks would save most of
# that. Where does the saving end, and what does your answer depend on besides $S$, $D$ and $c$?

# %% [markdown]
# ## Further reading
#
# * Beck et al., *xLSTM: Extended Long Short-Term Memory*, arXiv 2405.04517, appendix A.3: the parallel form.
# * Beck et al., *Tiled Flash Linear Attention: More Efficient Linear RNN and xLSTM Kernels*, arXiv 2503.14376.
# * Yang et al., *Gated Linear Attention Transformers with Hardware-Efficient Training*, arXiv 2312.06635.
# * Katharopoulos et al., *Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention*, arXiv 2006.16236.

# %% [markdown] tags=["instructor"]
# **For instructors.** Plan 150 minutes: 25 for section 1, 30 for section 2, 70 for section 3, 45 of them for 02.5, which
# goes well in pairs, and 25 for the measurements. The usual failures in 02.5, in this order: the carried memory is read
# without its decay inside the chunk, the normaliser is not carried, the short last chunk. The check names each. Let
# students bet on the chunk size before they measure; nearly all follow the arithmetic. With little time, hand out 02.5
# solved with three lines removed: the unit, the carried part of the overlap, the memory for the next chunk.
