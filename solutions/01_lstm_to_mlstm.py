# %% [markdown] seconds={"ci": 30, "cpu": 90, "gpu": 90} gigabytes={"ci": 2, "cpu": 3, "gpu": 6}
# # 01 · From the LSTM to the mLSTM: a memory that is a matrix
#
# A recurrent network reads a sequence token by token and carries a *memory* along. This lesson starts from the LSTM of
# 1997, finds three things it cannot do, and mends them one by one. What comes out is the **mLSTM**, the layer at the
# heart of xLSTM-UNet. At the end you have written it yourself, and your function gives the same numbers as two
# independent implementations.
#
# **You will be able to**
# * say how long a gated memory remembers, and why the state of an LSTM saturates,
# * store and recall key-value pairs in a matrix, and say how many fit,
# * derive the normaliser and the stabiliser, and show what breaks without each,
# * write the mLSTM token by token, and the way of a gradient back through it.
#
# **Time.** 1 minute of computing in profile `cpu` (measured on 2 cores, 1.3 GB of memory), 84 minutes of exercises.
#
# **You need** lesson 00, matrix products, and the chain rule.
#
# **Words.** An [LSTM](../docs/glossary.md#lstm) reads a sequence one [token](../docs/glossary.md#token) at a time; a
# [gate](../docs/glossary.md#gate) decides what is stored, kept or let out. A *pre-activation* is a number before a gate's
# function is applied to it. The *outer product* of two rows is the matrix of all products of an entry of the first and an
# entry of the second. [Key, query and value](../docs/glossary.md#key-query-value), the
# [matrix memory](../docs/glossary.md#matrix-memory), the [normaliser](../docs/glossary.md#normaliser) and the
# [stabiliser](../docs/glossary.md#stabiliser) are explained where they come up.
#
# **Symbols.**
# * $t$, $s$, $j$, $T$: positions in the sequence; the last one.
# * $x_t$, $h_t$, $W$, $R$: what comes in at token $t$ and what the cell answers, rows; weights that are learnt.
# * $z_t$, $c_t$: what an LSTM wants to store at token $t$; its memory after it.
# * $i_t$, $f_t$, $o_t$: pre-activations of the input, forget and output gate.
# * $\sigma$, $e$: the sigmoid, $\sigma(f) = 1 / (1 + e^{-f})$, and the base of its power.
# * $w_{ts}$: what token $s$ weighs in the memory after token $t$.
# * $q_t$, $k_t$, $v_t$: query, key and value of a token, rows of length $D$.
# * $D$, $V$: the width of keys and of values; $V = D$ unless said otherwise.
# * $N$, $M$, $r$: how many pairs are stored, how many queries ask, the number of one pair.
# * $u$: the crosstalk, what a reading holds besides the value that was asked for.
# * $S$: how many tokens there are.
# * $C_t$, $n_t$, $m_t$: matrix memory ($D \times D$), normaliser (length $D$) and stabiliser (a number).
# * $\tilde C_t$, $\tilde n_t$: memory and normaliser divided by $e^{m_t}$.
# * $a_t$: $\log \sigma(f_t)$, the logarithm of the forget gate.
# * $y_t$, $d_t$: what is read, $q_t C_t$, and what it is divided by, so that $h_t = y_t / d_t$.
# * $L$, $\bar C_t$, $\bar y_t$, $\bar h_t$, $\bar v_s$: a loss, and its gradients with respect to $C_t$, $y_t$, $h_t$, $v_s$.

# %%
import logging
import math

import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import display

# While it is loaded, xlstm looks for a graphics card, and PyTorch logs a warning where there is none.
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

from xlstm.blocks.mlstm.backends import recurrent_step_stabilized_simple

from xlstm_unet_lab.course import check, choose, hint, progress, reveal
from xlstm_unet_lab.course.pictures.comparison import lines
from xlstm_unet_lab.course.pictures.explorers import gate_explorer
from xlstm_unet_lab.course.pictures.mechanisms import gate_traces
from xlstm_unet_lab.ops import mlstm as package_mlstm

_ = torch.manual_seed(0)

# %% [markdown]
# ## 1 · How long does a gate remember?
#
# The memory of an LSTM is a number (or many, side by side). At each token the cell computes four numbers from what comes
# in and from its own last answer: what it wants to store, and the pre-activations of three gates.
#
# $$z_t = \tanh(x_t W_z + h_{t-1} R_z), \qquad i_t = x_t W_i + h_{t-1} R_i, \qquad \text{and } f_t, o_t \text{ like } i_t.$$
#
# A sigmoid makes a gate of a pre-activation, a number between 0 and 1. Then the memory is multiplied by the forget gate,
# the new token is added, and the answer is read through a third gate:
#
# $$c_t = \sigma(f_t)\, c_{t-1} + \sigma(i_t)\, z_t, \qquad h_t = \sigma(o_t) \tanh(c_t).$$
#
# Suppose $c_0 = 1$ was stored and nothing is added any more. If the gate stays the same, $\sigma(f)$ is left after one
# token, $\sigma(f)^2$ after two, $\sigma(f)^t$ after $t$. A gate looks close to 1 long before the memory is long:

# %% tags=["figure"]
tokens = np.arange(301.0)
display(
    lines(
        tokens,
        {f"f = {f}, gate {1 / (1 + math.exp(-f)):.4f}": (1 + math.exp(-f)) ** -tokens for f in (1, 3, 4.5, 6)},
        x_label="tokens since it was stored",
        y_label="share that is left",
    )
)

# %% [markdown]
# A feature map of 80 x 80 pixels read as a sequence has 6,400 tokens. To carry something from the first to the last of
# them half intact, a gate must keep 99.99 % at each. That is why forget gates are *trained through their pre-activation*:
# between $f = 6$ and $f = 9$ the gate moves from 0.9975 to 0.9999, and the reach grows twentyfold.
#
# ### Exercise 01.1: the half-life of a memory
#
# *About 6 minutes, difficulty 2 of 5.* After how many tokens is half of it left? Fill in the function; `f` is a number.
# One of the cases has a gate so open that a computer cannot tell it from 1. Your answer must be right there too.


# %% exercise="01.1"
def half_life(f):
    pass  ### SOLUTION


# %%
check("01.1", half_life)

# %% [markdown]
# **A surprise to explain.** For $f = 40$ the next cell computes the logarithm of the gate in two ways that are the same
# on paper. Which one would you put into a network?

# %% tags=["nbval-check-output", "surprise"]
print("gate first, then the logarithm:", math.log(1 / (1 + math.exp(-40))))
print("the logarithm at once:         ", f"{-math.log1p(math.exp(-40)):.3e}")

# %% [markdown]
# The first is wrong: `1 / (1 + math.exp(-40))` differs from 1 by $4 \cdot 10^{-18}$, and the numbers next to 1 that a
# computer knows are about $10^{-16}$ away. A network that computed its gate first would believe that nothing is ever forgotten.
# All code of this package therefore keeps $a_t = \log\sigma(f_t)$ and never the gate itself. Remember this when $a_t$
# appears below.
#
# ## 2 · Two things an LSTM cannot do
#
# **It cannot count far.** Let every token bring the same, $z_t = z$, and let the gates stay as they are. Then the memory
# climbs to the number $c_\infty$ that the recurrence leaves alone:
#
# $$c_\infty = \sigma(f)\,c_\infty + \sigma(i)\,z \quad\Longrightarrow\quad c_\infty = \frac{\sigma(i)\,z}{1 - \sigma(f)},
# \qquad c_t - c_\infty = \sigma(f)\,(c_{t-1} - c_\infty).$$
#
# The more a gate keeps, the higher $c_\infty$: 21 for $f = 3$ and 404 for $f = 6$ when $\sigma(i)\,z = 1$. The memory is
# fine with that. The *answer* is not, because it passes through $\tanh$:

# %% tags=["nbval-check-output"]
for memory in (1, 3, 10, 100):
    state = torch.tensor(float(memory), dtype=torch.float64, requires_grad=True)
    answer = torch.tanh(state)
    answer.backward()
    print(f"memory {memory:3d}: answer {answer:.6f}, slope {state.grad:.1e}")

# %% [markdown]
# From 10 on the answers differ by less than $10^{-8}$. And the slope of $\tanh$ there is almost 0, so that no gradient
# comes back that could teach the gates to do something about it. The state is **saturated**. This is a trap: to remember
# long, the forget gate must be open; with the forget gate open, the state saturates.
#
# **It cannot change its mind.** A hundred tokens have been stored, each with weight 1. Now the token arrives that
# matters. The input gate is a sigmoid: at most, the newcomer also gets weight 1, and makes up 1/101 of the memory. To
# make room, the forget gate has to shut, and everything else is lost with it.
#
# xLSTM replaces the input gate by an [exponential](../docs/glossary.md#exponential-gating), $e^{i_t}$. There is no largest
# weight: one token can outweigh all before it, and leave them in place.

# %% tags=["figure"]
preactivation = np.linspace(-6, 12, 181)
stored = 100  # tokens of weight 1 that are in the memory already
display(
    lines(
        preactivation,
        {
            "sigmoid input gate": 1 / (1 + stored * (1 + np.exp(-preactivation))),
            "exponential input gate": 1 / (1 + stored * np.exp(-preactivation)),
        },
        x_label="pre-activation of the newest token's input gate",
        y_label="its share of the memory",
    )
)

# %% [markdown]
# Weights of any size need a second number to make sense of them. Carry along the sum of the weights, the
# **normaliser** $n_t$, and answer with a weighted mean:
#
# $$c_t = \sigma(f_t)\,c_{t-1} + e^{i_t} z_t, \qquad n_t = \sigma(f_t)\,n_{t-1} + e^{i_t}, \qquad h_t = c_t / n_t .$$
#
# Why a mean? Follow one token. It enters $c$ as $e^{i_s} z_s$ and $n$ as $e^{i_s}$, and every later token multiplies both
# by its own $\sigma(f_j)$. So after token $t$
#
# $$c_t = \sum_{s \le t} w_{ts}\, z_s, \qquad n_t = \sum_{s \le t} w_{ts}, \qquad
# w_{ts} = e^{i_s} \prod_{j=s+1}^{t} \sigma(f_j).$$
#
# No $\tanh$ is needed any more: a mean of the $z_s$ stays in their range by itself, and its slope with
# respect to $z_s$ is $w_{ts} / n_t$, as flat or steep as that token is important.
#
# ### Exercise 01.2: an exponential gate and its normaliser
#
# *About 10 minutes, difficulty 2 of 5.* `z`, `i` and `f` are tensors with one number a token. Return the answers
# $h_1, h_2, \dots$ as a tensor of the same length.


# %% exercise="01.2"
def weighted_memory(z, i, f):
    pass  ### SOLUTION


# %%
check("01.2", weighted_memory)

# %% [markdown]
# ## 3 · A memory that is a matrix
#
# The third thing: one number can hold one thing. Even a thousand numbers side by side, each with its own gates, can
# only be read all at once; there is no *asking*. The mLSTM makes the memory a matrix and stores **pairs**: a key $k_s$
# says under what to file, a value $v_s$ what to keep. Both are rows, and $k_s^\top v_s$ is their outer product, a matrix.
# Writing adds it, reading multiplies with a query:
#
# $$C = \sum_s k_s^\top v_s, \qquad q\,C = \sum_s (q \cdot k_s)\, v_s .$$
#
# The second equation is all there is to understand. What comes back is a mixture of all values, each weighted by how
# well its key fits the query. Ask with a stored key, $q = k_r$ of length 1, and
#
# $$k_r C = \underbrace{v_r}_{\text{what you asked for}} + \underbrace{\sum_{s \ne r} (k_r \cdot k_s)\, v_s}_{\text{crosstalk}} .$$
#
# ### Exercise 01.3: an associative memory
#
# *About 8 minutes, difficulty 2 of 5.* `keys` is $(N, D)$, `values` $(N, V)$, `queries` $(M, D)$; return $(M, V)$.


# %% exercise="01.3"
def write_and_read(keys, values, queries):
    pass  ### SOLUTION


# %%
check("01.3", write_and_read)

# %% [markdown]
# **How many pairs fit?** With perpendicular keys there is no crosstalk, and $D$ rows of length $D$ can be perpendicular:
# $D$ pairs come back exactly. Keys that a network makes are more like random ones. Take random keys and values of
# length 1. Then $k_r \cdot k_s$ has mean 0. Its square is $1/D$ on average: the squares of the products of $k_s$ with
# $D$ perpendicular rows of length 1 add up to 1, and none of these rows is special. The crosstalk $u$ is a sum of
# $N - 1$ such products, each times a value of length 1. They do not depend on each other, so the squares add up,
#
# $$\mathbb{E}\,\|u\|^2 = \mathbb{E}\,\Big\|\sum_{s \ne r} (k_r \cdot k_s)\, v_s\Big\|^2
# = \sum_{s \ne r} \mathbb{E}\,(k_r \cdot k_s)^2 = \frac{N - 1}{D} .$$
#
# That is a prediction, and it looks bad: with $N = D + 1$ pairs the crosstalk is as long as the value itself. The next
# cell measures it. It also counts how often the reading is still more like the right value than like any other value that
# was stored. **Guess first:** how often will that be at $N = D$?


# %%
def recall(pairs, width, queries, generator):
    """Relative error of what is read, and how often it is most like the right value."""
    trials = min(200, max(1, queries // pairs))
    shape = (2, trials, pairs, width)
    keys, values = F.normalize(torch.randn(shape, generator=generator), dim=-1)
    read = keys @ (keys.mT @ values)
    error = (read - values).square().sum(-1).mean().sqrt()
    most_like = (read @ values.mT).argmax(-1)
    return float(error), float((most_like == torch.arange(pairs)).float().mean())


generator = torch.Generator().manual_seed(1)
queries = choose(ci=2000, cpu=20000)
numbers = [2**power for power in range(11)]
widths = (16, 32, 64, 128)
measured = {width: [recall(pairs, width, queries, generator) for pairs in numbers] for width in widths}
for width, rows in measured.items():
    for pairs, (error, _) in zip(numbers, rows, strict=True):
        predicted = math.sqrt((pairs - 1) / width)
        assert abs(error - predicted) < 0.15 * (1 + predicted), (width, pairs, error)

# %% tags=["figure"]
expected = {f"sqrt((N - 1) / {width})": [math.sqrt((n - 1) / width) for n in numbers] for width in (16, 128)}
display(
    lines(
        numbers,
        {f"measured, width {width}": [error for error, _ in measured[width]] for width in (16, 128)} | expected,
        x_label="pairs stored, N",
        y_label="error of what is read, relative",
        dashed=list(expected),
        log_x=True,
    )
)

# %% tags=["figure"]
display(
    lines(
        numbers,
        {f"width {width}": [share for _, share in rows] for width, rows in measured.items()},
        x_label="pairs stored, N",
        y_label="share recalled right",
        log_x=True,
    )
)

# %% [markdown]
# Call **capacity** the number of random pairs of which 95 % are recalled right. It lies where a curve falls through 0.95.


# %% tags=["surprise"]
def capacity(shares):
    """Where the share recalled right falls through 95 %, on the straight line between two measured numbers of pairs."""
    after = next(place for place, share in enumerate(shares) if share < 0.95)
    part = (shares[after - 1] - 0.95) / (shares[after - 1] - shares[after])
    return numbers[after - 1] * (numbers[after] / numbers[after - 1]) ** part


capacities = {width: capacity([share for _, share in rows]) for width, rows in measured.items()}
for width, pairs in capacities.items():
    print(f"width {width:3d}: {pairs:4.0f} pairs, {pairs / width:.1f} a row of the matrix")
error, share = measured[64][numbers.index(64)]
print(f"64 pairs at width 64: the error is {error:.2f} of a value's length, and {share:.1%} are recalled right")
assert capacities[128] / capacities[32] > 8

# %% tags=["figure"]
display(
    lines(
        widths,
        {
            "measured": list(capacities.values()),
            "as the square of the width": [capacities[128] * (width / 128) ** 2 for width in widths],
            "one pair a row": widths,
        },
        x_label="width D",
        y_label="pairs of which 95 % are recalled",
        dashed=["as the square of the width", "one pair a row"],
        log_x=True,
        log_y=True,
    )
)

# %% [markdown]
# **A surprise to explain.** Where the crosstalk is as long as the value, nearly every value is still told apart, and
# twice the width holds about *four times* as many pairs. Why? Find your own reason before you read on.
#
# The reading $v_r + u$ is more like a wrong value $v_j$ than like $v_r$ if $(v_r + u) \cdot v_j > (v_r + u) \cdot v_r$.
# Random values are nearly perpendicular, $v_r \cdot v_j \approx 0$, and $v_r \cdot v_r = 1$. So a mistake happens if
#
# $$u \cdot (v_j - v_r) > 1 .$$
#
# The crosstalk has squared length $(N - 1)/D$, but it points anywhere in $D$ dimensions. Along one direction its square
# is only $(N - 1)/D^2$ on average, and the row $v_j - v_r$ has squared length 2. The left side is thus about
# $\sqrt{2 (N - 1)} / D$ in size, and mistakes are rare while this is far below 1, that is for $N$ far below $D^2/2$. A
# matrix has $D^2$ entries; it is these that fill up, not its $D$ rows. The error alone does not tell what a network can
# still do with such a memory.
#
# ## 4 · The mLSTM
#
# Put it together: a matrix memory, an exponential input gate, a forget gate, a normaliser. The keys are divided by
# $\sqrt{D}$: a product $q \cdot k$ of $D$ random numbers of size 1 is about $\sqrt D$ in size, and shall not grow with the
# width.
#
# $$C_t = \sigma(f_t)\,C_{t-1} + e^{i_t}\, \tfrac{1}{\sqrt D}\, k_t^\top v_t, \qquad
# n_t = \sigma(f_t)\,n_{t-1} + e^{i_t}\,\tfrac{1}{\sqrt D}\, k_t, \qquad
# h_t = \frac{q_t C_t}{\max(|q_t \cdot n_t|,\, 1)} .$$
#
# **The normaliser, again.** Follow one token as in section 2: it enters $C$ as $e^{i_s} k_s^\top v_s / \sqrt D$ and is
# multiplied by all later forget gates, which makes $w_{ts}$ again. So
#
# $$q_t C_t = \sum_{s \le t} w_{ts} \frac{q_t \cdot k_s}{\sqrt D}\, v_s, \qquad
# q_t \cdot n_t = \sum_{s \le t} w_{ts} \frac{q_t \cdot k_s}{\sqrt D} .$$
#
# The second is the first with every value replaced by the number 1: the sum of the weights that the values get. A pair
# stored ten times is read ten times as strongly, and the division takes the ten out again. Unlike in section 2 these
# weights can be negative and cancel, hence the absolute value. And the floor of 1: a query that fits no key shall give a
# small answer, not a small number divided by a smaller one. The next cell stores one pair again and again.

# %% tags=["figure"]
width = 8
key, value = F.normalize(torch.randn(2, width, dtype=torch.float64), dim=1)
times = range(1, 41)
read = {"without the normaliser": [], "with it": []}
for count in times:
    q = k = key.mul(math.sqrt(math.sqrt(width))).expand(1, 1, count, -1)  # so that q . k / sqrt(D) is 1
    v, i, f = value.expand(1, 1, count, -1), torch.zeros(1, 1, count).double(), torch.full((1, 1, count), 30.0).double()
    h, state = package_mlstm.recurrent(q, k, v, i, f, return_state=True)
    unscaled = q[0, 0, -1] @ state.C[0, 0] * state.m[0, 0].exp()
    read["without the normaliser"].append(float(unscaled.norm()))
    read["with it"].append(float(h[0, 0, -1].norm()))
display(lines(list(times), read, x_label="times the same pair was stored", y_label="length of what is read"))

# %% [markdown]
# **The stabiliser.** $e^{i_t}$ overflows: in float32 above $i = 88.7$, in float16 above 11.1. And yet the *answer* is
# harmless, because $C_t$ and $n_t$ grow together and only their ratio counts. So store both divided by a common factor
# $e^{m_t}$, write $\tilde C_t = C_t e^{-m_t}$ and $\tilde n_t = n_t e^{-m_t}$, and choose $m_t$ so that nothing
# overflows. Insert $C_t = \tilde C_t e^{m_t}$ into the recurrence and divide by $e^{m_t}$:
#
# $$\tilde C_t = e^{a_t + m_{t-1} - m_t}\,\tilde C_{t-1} + e^{i_t - m_t}\, \tfrac{1}{\sqrt D}\,k_t^\top v_t,
# \qquad a_t = \log \sigma(f_t),$$
#
# and the same for $\tilde n_t$. Two exponents appear, $a_t + m_{t-1} - m_t$ and $i_t - m_t$. Both are at most 0, and one
# of them is 0, if
#
# $$m_t = \max(a_t + m_{t-1},\; i_t) .$$
#
# The answer has to stay the same. Above and below the fraction a factor $e^{m_t}$ is missing now, so the floor has to
# be divided as well:
#
# $$h_t = \frac{q_t C_t}{\max(|q_t \cdot n_t|, 1)} = \frac{q_t \tilde C_t}{\max(|q_t \cdot \tilde n_t|,\; e^{-m_t})} .$$
#
# Any $m_t$ would give the same function; with this one no exponent is above 0. It begins with $m_0 = -\infty$: the empty
# memory is 0 whatever its scale. In papers and in code $C_t$ and $n_t$ often mean the scaled ones.

# %% tags=["nbval-check-output"]
for dtype in (torch.float16, torch.float32):
    tokens = torch.tensor([5.0, 60.0, 120.0], dtype=dtype)
    print(f"{dtype!s:15} exp(i) for i = 5, 60, 120: ", [f"{float(x):.3g}" for x in tokens.exp()])
    print(f"{'':15} exp(i - m), m the largest:  ", [f"{float(x):.3g}" for x in (tokens - tokens.max()).exp()])

# %% [markdown]
# ### Exercise 01.4: the mLSTM, token by token
#
# *About 25 minutes, difficulty 4 of 5.* One head, no batch: `q`, `k` are $(S, D)$, `v` is $(S, V)$, `i` and `f` have
# length $S$; return the answers, $(S, V)$. Begin with an empty memory. Write it with $m_t = 0$ first if you like, run the
# check, and see which cases need the stabiliser. (The package adds $10^{-6}$ to the denominator; leave that out.)


# %% exercise="01.4"
def mlstm(q, k, v, i, f):
    pass  ### SOLUTION


# %%
check("01.4", mlstm)

# %% [markdown]
# **Two independent witnesses.** The package's `ops.mlstm.recurrent`, which all later lessons use, must agree with the
# step function of the `xlstm` package that the authors of xLSTM publish. Different people wrote them. And it must agree
# with the sums over all tokens from which we started, written down without any recurrence.


# %% tags=["independent"]
def by_sums(q, k, v, i, f, normalise=True, floor=1.0):
    """The mLSTM as sums over all earlier tokens, without a stabiliser; row t of `weights` holds the w_ts."""
    weights = package_mlstm.decay_matrix(i, f).to(q.dtype).exp()
    strengths = weights * (q @ k.mT) / math.sqrt(q.shape[-1])
    total = strengths.sum(-1, keepdim=True).abs().clamp(min=floor) if normalise else 1.0
    return strengths @ v / total


batch, heads, length, width = 2, 3, 33, 8
q, k, v = torch.randn(3, batch, heads, length, width, dtype=torch.float64)
i, f = torch.randn(2, batch, heads, length, dtype=torch.float64)
ours = package_mlstm.recurrent(q, k, v, i, f)
sizes = {"C": (width, width), "n": (width, 1), "m": (1, 1)}
states = [torch.full((batch, heads, *size), -math.inf if name == "m" else 0.0).double() for name, size in sizes.items()]
theirs = []
for t in range(length):
    token = [x[:, :, t : t + 1] for x in (q, k, v)] + [x[:, :, t, None, None] for x in (i, f)]
    answer, states = recurrent_step_stabilized_simple(*states, *token)
    theirs.append(answer)
assert torch.allclose(ours, torch.cat(theirs, 2), rtol=1e-10, atol=1e-12)
assert torch.allclose(ours, by_sums(q, k, v, i, f), rtol=1e-3, atol=1e-12)  # no 1e-6 in its denominator
print(f"xlstm's step differs by at most {(ours - torch.cat(theirs, 2)).abs().max():.0e}")

# %% [markdown]
# **What breaks without each?** First the floor and the normaliser, in float64, on a thousand random tokens whose values
# have length 1. Printed are lengths of answers.

# %%
q, k, v = torch.randn(3, 1, 1, 1000, width, dtype=torch.float64)
i, f = torch.zeros(1, 1, 1000).double(), torch.full((1, 1, 1000), 6.0).double()
inputs = q, k, F.normalize(v, dim=-1), i, f
for name, answers in {
    "complete": by_sums(*inputs),
    "without the floor": by_sums(*inputs, floor=0.0),
    "without the normaliser": by_sums(*inputs, normalise=False),
}.items():
    lengths = answers.norm(dim=-1).flatten()
    early, late = lengths[:100].median(), lengths[-100:].median()
    print(f"{name:23} first 100 {early:5.2f}, last 100 {late:5.2f} (medians); longest {lengths.max():.0f}")

# %% [markdown]
# Without the floor, single answers explode: those where the weights happen to cancel. (With it they can be long as well,
# but never longer than what is read before the division.) Without the normaliser the typical answer grows with the number
# of tokens stored. Now the stabiliser, in float32, on 40 tokens whose input gates rise to 120.

# %%
q, k, v = torch.randn(3, 1, 1, 40, width)
i, f = torch.linspace(0, 120, 40)[None, None], torch.full((1, 1, 40), 3.0)
lost = by_sums(q, k, v, i, f).isfinite().all(-1).logical_not().flatten()
assert package_mlstm.recurrent(q, k, v, i, f).isfinite().all()
first = int(lost.nonzero()[0])
print(f"without the stabiliser nothing is left from token {first} on, where i is {float(i[0, 0, first]):.1f}")
print("with it every answer is finite")

# %% tags=["figure"]
display(gate_traces(i[0, 0], f[0, 0]))

# %% [markdown]
# The picture says why. The pre-activations rise far beyond 88, but what is multiplied is never above 1: each new token is
# written with weight 1, and the scale $m_t$ follows the largest.

# %% [markdown]
# ## 5 · What the gates do, by hand
#
# Six pairs are stored one after the other and then read with their own keys. The sliders set the forget gate of all
# pairs and the input gate of one of them. The picture shows the memory as it is stored, how much each answer resembles
# the right value, and one answer in full. Tab goes from slider to slider, the arrow keys move it. Try:
#
# 1. Close the forget gate, $f = -6$. Which pair is left? Why that one?
# 2. Back to $f = 6$. Raise the input gate of pair 0 to 6, then lower it to -6. What do the other keys recall each time?
# 3. Let the memory answer with the value of pair 2 *whatever it is asked*. What sign can the answer have, and why?

# %% tags=["widget"]
gates = gate_explorer()
display(gates)

# %% [markdown]
# ### Exercise 01.5: what is left of every token
#
# *About 15 minutes, difficulty 4 of 5.* `i` and `f` are tensors with one number a token. Return the weight $w_{Ts}$ with
# which each token $s$ is in the memory after the last token $T$, scaled so that the largest is 1. Gates can be large:
# compute with logarithms until the end.


# %% exercise="01.5"
def influence(i, f):
    pass  ### SOLUTION


# %%
check("01.5", influence)

# %% [markdown]
# ## 6 · The gradient on its way back
#
# Training needs the gradient of a loss $L$ with respect to everything that was stored. Write $\bar C_t$ for
# $\partial L / \partial C_t$, a matrix like $C_t$, and likewise for other letters. Read $y_t = q_t C_t$ and divide by
# $d_t = \max(|q_t \cdot n_t|, 1)$ to get $h_t = y_t / d_t$. Values enter $y_t$ and not $d_t$, so $\bar y_t = \bar h_t / d_t$.
#
# The memory $C_t$ is used twice: token $t$ reads it, and token $t + 1$ multiplies it by a number. Hence
#
# $$\bar C_t = \underbrace{q_t^\top\, \bar y_t}_{\text{read as } q_t C_t} +
# \underbrace{\sigma(f_{t+1})\,\bar C_{t+1}}_{\text{kept in } C_{t+1}}, \qquad
# \bar v_s = \tfrac{1}{\sqrt D}\, e^{i_s}\, k_s\, \bar C_s .$$
#
# This is **the same recurrence, run from the last token to the first**, and where the key wrote, it now reads. Unroll it
# as before: what token $t$ adds is multiplied by the gates of all tokens after $s$ up to $t$,
#
# $$\bar C_s = \sum_{t \ge s} \Big(\prod_{j=s+1}^{t} \sigma(f_j)\Big)\, q_t^\top\, \bar y_t, \qquad \text{and with } e^{i_s}
# \text{ and } k_s \text{ in front} \qquad \bar v_s = \sum_{t \ge s} w_{ts}\, \frac{q_t \cdot k_s}{\sqrt D}\; \bar y_t .$$
#
# The weights are those of the way forward. The gradient decays with the same gates as the memory, and passes through no
# $\tanh$ and no weight matrix on its way.
#
# ### Exercise 01.6: backpropagation through the recurrence
#
# *About 20 minutes, difficulty 5 of 5.* `q`, `k` are $(S, D)$, `i`, `f` have length $S$, and `y_gradient`, $(S, V)$, holds
# the rows $\bar y_t$. Return the rows $\bar v_s$ as a tensor $(S, V)$. Gates are small here: no stabiliser is needed.


# %% exercise="01.6"
def value_gradients(q, k, i, f, y_gradient):
    pass  ### SOLUTION


# %%
check("01.6", value_gradients)

# %% [markdown]
# Is the derivation right? Let the loss be the sum of the last answer, so that $\bar h_T$ is a row of ones and all other
# $\bar h_t$ are 0. Then $\bar v_s = w_{Ts}\,(q_T \cdot k_s) / (\sqrt D\, d_T)$ in every entry. PyTorch's automatic
# differentiation knows nothing of our formula.

# %%
length, width = 50, 16
q, k, v = torch.randn(3, 1, 1, length, width, dtype=torch.float64)
i, f = torch.randn(1, 1, length, dtype=torch.float64), torch.full((1, 1, length), 3.0).double()
package_mlstm.recurrent(q, k, v.requires_grad_(), i, f)[0, 0, -1].sum().backward()
strengths = package_mlstm.decay_matrix(i, f)[0, 0, -1].exp() * (k[0, 0] @ q[0, 0, -1]) / math.sqrt(width)
by_formula = strengths / strengths.sum().abs().clamp(min=1)
assert torch.allclose(by_formula[:, None], v.grad[0, 0], rtol=1e-3, atol=1e-12)  # the package adds 1e-6 below the line
print(f"formula and automatic differentiation differ by at most {(by_formula[:, None] - v.grad[0, 0]).abs().max():.0e}")

# %% [markdown]
# **And in an LSTM?** There $c_{t+1}$ depends on $c_t$ in two ways: through the forget gate as here, and through
# $h_t = \sigma(o_t) \tanh(c_t)$, which enters all four pre-activations of token $t + 1$. The second way has weights and
# slopes in it: it may strengthen the gradient or weaken it, there is no formula for the whole product, and it must be
# computed token by token, forward and backward. The mLSTM gives that way up; its gates see only the tokens. The next
# cell measures how much of the gradient of the last answer arrives at earlier tokens, before any training. What is below
# $10^{-12}$ is drawn there.


# %%
def arriving(tokens, last):
    """The mean length of the gradient of the last answers at each token, the newest first, relative to the newest."""
    (gradient,) = torch.autograd.grad(last.sum(), tokens)
    lengths = gradient.norm(dim=-1).reshape(-1, tokens.shape[-2]).mean(0).flip(0)
    return np.maximum((lengths / lengths[0]).numpy(), 1e-12)


length, width, sequences = choose(ci=100, cpu=400), 16, 256
arrived = {}
inputs = torch.randn(sequences, length, width, dtype=torch.float64, requires_grad=True)
for name, bias in {"LSTM as PyTorch makes it": 0.0, "LSTM with 6 added to f": 6.0}.items():
    lstm = torch.nn.LSTM(width, width, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        lstm.bias_ih_l0[width : 2 * width] += bias  # PyTorch's order of rows: i, f, z, o
    arrived[name] = arriving(inputs, lstm(inputs)[0][:, -1])
q, k, v = torch.randn(3, sequences, 1, length, width, dtype=torch.float64)
v.requires_grad_()
for gate in (0.0, 6.0):
    i, f = torch.zeros(sequences, 1, length).double(), torch.full((sequences, 1, length), gate).double()
    arrived[f"mLSTM, f = {gate:g}"] = arriving(v, package_mlstm.chunkwise(q, k, v, i, f)[:, :, -1])

# %% tags=["figure"]
distance = np.arange(float(length))
gates = {f"gate of f = {f}, to the power": np.maximum((1 + math.exp(-f)) ** -distance, 1e-12) for f in (0, 6)}
display(
    lines(
        distance,
        arrived | gates,
        x_label="tokens back from the last",
        y_label="gradient, relative to the newest",
        dashed=list(gates),
        log_y=True,
    )
)

# %% [markdown]
# How far a gradient reaches is decided first by the *forget gates*, in both kinds of network. An LSTM as PyTorch makes it
# starts with pre-activations around 0, so its gates keep about half at each token; a network that forgets within a few
# dozen tokens cannot learn that the first of a hundred mattered. With 6 added the gradient arrives. But neither LSTM
# follows its dashed line, because the second way adds to the first: the one falls more slowly than the gate says, and the
# other drops and then *grows* with the distance. For the mLSTM the dashed line, a power of the gate, is the answer, but
# for the randomness of queries and keys.

# %% [markdown]
# ## Key points
#
# * A forget gate remembers for $\log 2 / -\log \sigma(f)$ tokens; keep the logarithm, not the gate.
# * Exponential input gates let a late token outweigh all earlier ones; a normaliser turns the weights into a mean.
# * An open forget gate and a $\tanh$ do not go together: the memory grows to where the answer no longer moves.
# * A matrix memory adds outer products. $D$ perpendicular keys fit exactly. Random ones disturb each other by
#   $\sqrt{(N-1)/D}$; what was stored can be told apart up to a number of pairs that grows as $D^2$.
# * The stabiliser $m_t$ is a change of units. It alters no answer and prevents every overflow.
# * The mLSTM is linear in its memory. So its gradient comes back through the same gates, with the same weights, and
#   (lesson 02) it needs no loop.
#
# ## What could go wrong
#
# * *NaN after some hundred steps of training.* An exponential without its stabiliser, or a float16 gate. Lesson 07 has
#   a failure lab for it.
# * *Answers of the right direction and the wrong size.* The floor: 1 for the memory as defined, $e^{-m_t}$ as stored.
# * *Everything is right for small gates only.* Products of gates underflow; add logarithms.

# %% [markdown]
# ## An open question
#
# The memory writes blindly: it adds a pair even if the key is there already with another value. How would you change
# the update so that a new value *replaces* the old one of the same key? What would that cost: is the recurrence still
# linear, and are the gates still enough to write the weights $w_{ts}$ down?

# %% [markdown]
# ## Further reading
#
# * Hochreiter and Schmidhuber, *Long Short-Term Memory*, Neural Computation 9, 1735 (1997).
# * Beck et al., *xLSTM: Extended Long Short-Term Memory*, arXiv 2405.04517: section 2 and appendix A.
# * Schlag, Irie and Schmidhuber, *Linear Transformers Are Secretly Fast Weight Programmers*, arXiv 2102.11174.
# * Kohonen, *Correlation Matrix Memories*, IEEE Transactions on Computers C-21, 353 (1972).

# %%
progress("01")

# %% [markdown] tags=["instructor"]
# **For instructors.** Two sittings of 90 minutes: sections 1 to 3, then the mLSTM and its gradient. Let the class *predict*
# the capacity before running the cell, and write the guesses on the board. Most students put the floor at 1 in
# exercise 01.4; the check names it. If time is short, leave out 01.2 and discuss its planted mistakes instead, and give
# 01.6 as homework. Ask of every figure what it would look like with the forget gates shut. The open question leads to the
# delta rule (Schlag et al.): still linear in the memory, but its transition is a matrix and no longer a number.
