"""The mLSTM's three kernels for a GPU, in Triton: sums over chunks, states from them, and products with both.

The algebra is that of `mlstm_chunkwise`, in its letters, and the normaliser is one more column there as here: of
[C | n], of [v | 1] and of [numerator | denominator]. Here such a last column lies in a vector of its own, called
`..._last`, so that the tiles of a matrix keep sizes that matrix units take. Two sums then say all of it:

    sums_n  = sum_s  w_s a_s [b_s | last_s]^T                                          over the tokens s of chunk n
    total_t = edge_t [a_t | last_t] memory_n + sum_s exp(col_s - row_t) ([a_t | last_t] . [b_s | last_s]) c_s

               a    b    c    memory             col     row     s       gives
    output     q    k    v    C before           u       mu      <= t    [numerator | denominator]
    of q       dh   v    k    C before, turned   u       mu'     <= t    dq
    of k       v    dh   q    dC after, turned   -mu'    -u      >= t    dk
    of v       k    q    dh   dC after           -mu'    -u      >= t    dv

mu' is mu + log(normaliser): dividing dh by the normaliser is one more weight, as 1 / sqrt(D) is one within u.

Inputs (X, S, width) and vectors (X, S) lie densely in memory, X batch times heads; states are (X, N, V + 1, D): C
turned, and n in the last row. Every sum is taken in float32 and in the same order each time. No two programs write the
same place. Addresses are pointers and masks, which every Triton from 3.2 on compiles.

Source: Beck et al., Tiled Flash Linear Attention (arXiv 2503.14376), section 3, for the two levels: chunks with states
between them, and tiles inside a chunk. The gradient of the normaliser, which it leaves out, is in the last columns.
"""

import triton
import triton.language as tl


@triton.jit
def tile(matrix, rows, columns, row_stride, column_stride, height, width):
    """Load matrix[rows, columns], with zeros beyond its height and width."""
    inside = (rows[:, None] < height) & (columns[None, :] < width)
    return tl.load(matrix + rows[:, None] * row_stride + columns[None, :] * column_stride, mask=inside, other=0.0)


@triton.jit
def sum_chunks(
    a, b, b_last, w, sums,
    length, chunk, a_width, b_width,
    TOKENS: tl.constexpr, A: tl.constexpr, B: tl.constexpr, PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """sums[x, n, :b_width] = sum_s w_s b_s a_s^T, and in row b_width the same with b_last for b."""
    x, n = tl.program_id(0).to(tl.int64), tl.program_id(1)
    tiles = tl.cdiv(a_width, A)
    columns = tl.program_id(2) % tiles * A + tl.arange(0, A)
    rows = tl.program_id(2) // tiles * B + tl.arange(0, B)
    a, b, b_last, w = a + x * length * a_width, b + x * length * b_width, b_last + x * length, w + x * length
    total, total_last = tl.zeros((B, A), tl.float32), tl.zeros((A,), tl.float32)
    stop = tl.minimum((n + 1) * chunk, length)
    for first in range(n * chunk, stop, TOKENS):
        s = first + tl.arange(0, TOKENS)
        weight = tl.load(w + s, mask=s < stop, other=0.0)
        last = tl.load(b_last + s, mask=s < stop, other=0.0)
        weighted = tile(a, s, columns, a_width, 1, stop, a_width) * weight[:, None]
        b_turned = tile(b, rows, s, 1, b_width, b_width, stop).to(PRODUCT)
        total = tl.dot(b_turned, weighted.to(PRODUCT), total, input_precision=PRECISION)
        total_last += tl.sum(weighted * last[:, None], 0)
    sums += (x * tl.num_programs(1) + n) * (b_width + 1) * a_width
    places = rows[:, None] * a_width + columns[None, :]
    tl.store(sums + places, total, mask=(rows[:, None] < b_width) & (columns[None, :] < a_width))
    if tl.program_id(2) < tiles:
        tl.store(sums + b_width * a_width + columns, total_last, mask=columns < a_width)


@triton.jit
def scan_states(sums, carrying, state, chunks, size, REVERSED: tl.constexpr, NUMBERS: tl.constexpr):
    """state = carrying_n state + sums_n, chunk after chunk; what it was before a chunk is written over sums_n."""
    x = tl.program_id(0).to(tl.int64)
    numbers = tl.program_id(1) * NUMBERS + tl.arange(0, NUMBERS)
    inside = numbers < size
    now = tl.load(state + x * size + numbers, mask=inside, other=0.0)
    for step in range(chunks):
        n = chunks - 1 - step if REVERSED else step
        place = sums + (x * chunks + n) * size + numbers
        added = tl.load(place, mask=inside, other=0.0)
        tl.store(place, now, mask=inside)
        now = now * tl.load(carrying + x * chunks + n) + added
    tl.store(state + x * size + numbers, now, mask=inside)


@triton.jit
def attend(
    a, b, c, a_last, b_last, memory, memory_last, edge, row, row_rest, col, col_rest, least, total_last, total,
    length, chunk, inner, outer, memory_size, inner_stride, outer_stride,
    REVERSED: tl.constexpr, NORMALISED: tl.constexpr, LAST: tl.constexpr, EPSILON: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, OUTER: tl.constexpr,
    PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """total of the table above, a and b `inner` wide, c and total `outer` wide; REVERSED where s >= t.

    LAST adds the last columns of a, b and memory; NORMALISED keeps that of c and memory, the denominator, as total_last
    and divides by max(|denominator|, least) + EPSILON.
    """
    x, first = tl.program_id(1).to(tl.int64), tl.program_id(0) * ROWS
    n = first // chunk
    t, columns = first + tl.arange(0, ROWS), tl.program_id(2) * OUTER + tl.arange(0, OUTER)
    a, b, c = a + x * length * inner, b + x * length * inner, c + x * length * outer
    memory += (x * tl.cdiv(length, chunk) + n) * memory_size
    memory_last += (x * tl.cdiv(length, chunk) + n) * memory_size
    at = x * length + t
    kept = t < length

    product, denominator = tl.zeros((ROWS, OUTER), tl.float32), tl.zeros((ROWS,), tl.float32)
    for start in range(0, inner, INNER):
        d = start + tl.arange(0, INNER)
        rows_of_a = tile(a, t, d, inner, 1, length, inner).to(PRODUCT)
        state = tile(memory, d, columns, inner_stride, outer_stride, inner, outer)
        # A state is a sum over the whole past, which may be more than float16 holds.
        scale = tl.maximum(tl.max(tl.abs(state)), 1.0) if PRODUCT == tl.float16 else 1.0  # noqa: SIM300
        part = tl.dot(rows_of_a, (state / scale).to(PRODUCT), input_precision=PRECISION)
        product += part * scale
        if NORMALISED:
            normaliser = tl.load(memory_last + d, mask=d < inner, other=0.0)
            denominator += tl.sum(rows_of_a * normaliser[None, :], 1)
    if LAST:
        last = tl.load(a_last + at, mask=kept, other=0.0)
        normaliser = tl.load(memory_last + columns, mask=columns < outer, other=0.0)
        product += last[:, None] * normaliser[None, :]
    weight = tl.load(edge + at, mask=kept, other=0.0)
    product, denominator = product * weight[:, None], denominator * weight

    row_t, row_rest_t = tl.load(row + at, mask=kept, other=0.0), tl.load(row_rest + at, mask=kept, other=0.0)
    begin = first if REVERSED else n * chunk
    stop = tl.minimum((n + 1) * chunk if REVERSED else first + ROWS, length)
    for start in range(begin, stop, COLUMNS):
        s = start + tl.arange(0, COLUMNS)
        score = tl.zeros((ROWS, COLUMNS), tl.float32)
        for begin_inner in range(0, inner, INNER):
            d = begin_inner + tl.arange(0, INNER)
            rows_of_a = tile(a, t, d, inner, 1, length, inner).to(PRODUCT)
            b_turned = tile(b, d, s, 1, inner, inner, stop).to(PRODUCT)
            score = tl.dot(rows_of_a, b_turned, score, input_precision=PRECISION)
        if LAST:
            score += last[:, None] * tl.load(b_last + x * length + s, mask=s < stop, other=0.0)[None, :]
        # Twice the digits of float32: row and col are large numbers that nearly cancel.
        exponent = tl.load(col + x * length + s, mask=s < stop, other=0.0)[None, :] - row_t[:, None]
        exponent += tl.load(col_rest + x * length + s, mask=s < stop, other=0.0)[None, :] - row_rest_t[:, None]
        seen = s[None, :] >= t[:, None] if REVERSED else s[None, :] <= t[:, None]
        seen = seen & (s[None, :] < stop) & kept[:, None]
        score *= tl.exp(tl.where(seen, exponent, float("-inf")))
        rows_of_c = tile(c, s, columns, outer, 1, stop, outer).to(PRODUCT)
        product = tl.dot(score.to(PRODUCT), rows_of_c, product, input_precision=PRECISION)
        denominator += tl.sum(score, 1)

    if NORMALISED:
        product /= (tl.maximum(tl.abs(denominator), tl.load(least + at, mask=kept, other=1.0)) + EPSILON)[:, None]
        if tl.program_id(2) == 0:
            tl.store(total_last + at, denominator, mask=kept)
    places = x * length * outer + t[:, None] * outer + columns[None, :]
    tl.store(total + places, product, mask=kept[:, None] & (columns[None, :] < outer))
