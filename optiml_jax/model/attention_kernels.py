"""The kernels of `flash_attention`, in Triton's language (Tillet et al. 2019); imported only where they run.

b is a position in a block of queries, c one in a block of keys, k a column of a head. Triton's arrays have sizes of
powers of two, so a head of K columns is an array of WIDE columns and one of REST, of which those from K on are zero:
heads of 80 have 64 and 16, which is a third less work than 128.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)  # the kernels use exp2
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
START = tl.constexpr(
    -1e30
)  # below every score, but finite: exp2(-inf - START) is 0 where a query sees no key of a block


@triton.jit
def load_columns(head, rows_r, stride, K: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr):
    """The columns from FIRST on of some rows of a head."""
    columns_k = FIRST + tl.arange(0, WIDTH)
    places = head + rows_r[:, None] * stride + columns_k[None, :]
    if FIRST + WIDTH > K:
        return tl.load(places, mask=(columns_k < K)[None, :], other=0.0)
    return tl.load(places)


@triton.jit
def store_columns(head, x_rk, rows_r, stride, K: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr):
    """Writes what `load_columns` reads."""
    columns_k = FIRST + tl.arange(0, WIDTH)
    places = head + rows_r[:, None] * stride + columns_k[None, :]
    x_rk = cast(x_rk, head.dtype.element_ty)
    if FIRST + WIDTH > K:
        tl.store(places, x_rk, mask=(columns_k < K)[None, :])
    else:
        tl.store(places, x_rk)


@triton.jit
def cast(x, dtype: tl.constexpr):
    """Rounds to the nearest number of another type."""
    if INTERPRETED and dtype == tl.bfloat16:  # which the interpreter would round towards zero
        bits = x.to(tl.int32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def product(a, b):
    """Matrix product with float32 sums; float32 operands are not rounded to TF32."""
    if INTERPRETED:  # where a product of bfloat16 would be one of their bits, as integers
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def sees(t, s, until):
    """As `visibility.sees`."""
    return (s <= t) & (t < until)


@triton.jit
def offsets(T: tl.constexpr, H: tl.constexpr, K: tl.constexpr):
    """Where this program's row of the batch begins in [B, T], and its head in [B, T, H, K] and in [B, H, T]; and the
    distance of the head's positions in [B, T, H, K]."""
    row, h = tl.program_id(1).to(tl.int64) * T, tl.program_id(2)
    return row, (row * H + h) * K, row * H + h * T, H * K


@triton.jit
def attention_forward(
    q,
    k,
    v,
    first,
    until,
    out,
    log_sum,
    T: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    WIDE: tl.constexpr,
    REST: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    SHARED: tl.constexpr,
):
    """Writes the output of a block of queries, and the logarithm (base 2) of the sum of their weights."""
    start = tl.program_id(0) * QUERIES
    row, head, sums, stride = offsets(T, H, K)
    t_b = start + tl.arange(0, QUERIES)
    q_bk = load_columns(q + head, t_b, stride, K, 0, WIDE)
    top_b = tl.full([QUERIES], START, tl.float32)
    scale_b = tl.zeros([QUERIES], tl.float32)
    out_bk = tl.zeros([QUERIES, WIDE], tl.float32)
    if REST > 0:
        q_rest_bk = load_columns(q + head, t_b, stride, K, WIDE, REST)
        out_rest_bk = tl.zeros([QUERIES, REST], tl.float32)

    for j in range(tl.load(first + row + start) // KEYS, tl.cdiv(start + QUERIES, KEYS)):
        s_c = j * KEYS + tl.arange(0, KEYS)
        until_c = tl.load(until + row + s_c)
        if not SHARED or tl.max(until_c, 0) > start:  # otherwise these are keys of branches that have ended
            k_ck = load_columns(k + head, s_c, stride, K, 0, WIDE)
            scores_bc = product(q_bk, tl.trans(k_ck))
            if REST > 0:
                k_rest_ck = load_columns(k + head, s_c, stride, K, WIDE, REST)
                scores_bc += product(q_rest_bk, tl.trans(k_rest_ck))
            scores_bc = tl.where(sees(t_b[:, None], s_c[None, :], until_c[None, :]), scores_bc * LOG2_E, -float("inf"))
            new_top_b = tl.maximum(top_b, tl.max(scores_bc, 1))
            weights_bc = tl.exp2(scores_bc - new_top_b[:, None])
            shrink_b = tl.exp2(top_b - new_top_b)
            scale_b = scale_b * shrink_b + tl.sum(weights_bc, 1)
            v_ck = load_columns(v + head, s_c, stride, K, 0, WIDE)
            out_bk = out_bk * shrink_b[:, None] + product(cast(weights_bc, v_ck.dtype), v_ck)
            if REST > 0:
                v_rest_ck = load_columns(v + head, s_c, stride, K, WIDE, REST)
                out_rest_bk = out_rest_bk * shrink_b[:, None] + product(cast(weights_bc, v_ck.dtype), v_rest_ck)
            top_b = new_top_b

    store_columns(out + head, out_bk / scale_b[:, None], t_b, stride, K, 0, WIDE)
    if REST > 0:
        store_columns(out + head, out_rest_bk / scale_b[:, None], t_b, stride, K, WIDE, REST)
    tl.store(log_sum + sums + t_b, top_b + tl.log2(scale_b))


@triton.jit
def attention_d_query(
    q,
    k,
    v,
    d_out,
    log_sum,
    inner,
    first,
    until,
    dq,
    T: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    WIDE: tl.constexpr,
    REST: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    SHARED: tl.constexpr,
):
    """Writes the gradient of a block of queries."""
    start = tl.program_id(0) * QUERIES
    row, head, sums, stride = offsets(T, H, K)
    t_b = start + tl.arange(0, QUERIES)
    q_bk = load_columns(q + head, t_b, stride, K, 0, WIDE)
    d_out_bk = load_columns(d_out + head, t_b, stride, K, 0, WIDE)
    log_sum_b, inner_b = tl.load(log_sum + sums + t_b), tl.load(inner + sums + t_b)
    dq_bk = tl.zeros([QUERIES, WIDE], tl.float32)
    if REST > 0:
        q_rest_bk = load_columns(q + head, t_b, stride, K, WIDE, REST)
        d_out_rest_bk = load_columns(d_out + head, t_b, stride, K, WIDE, REST)
        dq_rest_bk = tl.zeros([QUERIES, REST], tl.float32)

    for j in range(tl.load(first + row + start) // KEYS, tl.cdiv(start + QUERIES, KEYS)):
        s_c = j * KEYS + tl.arange(0, KEYS)
        until_c = tl.load(until + row + s_c)
        if not SHARED or tl.max(until_c, 0) > start:  # otherwise these are keys of branches that have ended
            k_ck = load_columns(k + head, s_c, stride, K, 0, WIDE)
            v_ck = load_columns(v + head, s_c, stride, K, 0, WIDE)
            scores_bc = product(q_bk, tl.trans(k_ck))
            d_weights_bc = product(d_out_bk, tl.trans(v_ck))
            if REST > 0:
                k_rest_ck = load_columns(k + head, s_c, stride, K, WIDE, REST)
                v_rest_ck = load_columns(v + head, s_c, stride, K, WIDE, REST)
                scores_bc += product(q_rest_bk, tl.trans(k_rest_ck))
                d_weights_bc += product(d_out_rest_bk, tl.trans(v_rest_ck))
            weights_bc = tl.exp2(scores_bc * LOG2_E - log_sum_b[:, None])
            weights_bc = tl.where(sees(t_b[:, None], s_c[None, :], until_c[None, :]), weights_bc, 0.0)
            d_scores_bc = cast(weights_bc * (d_weights_bc - inner_b[:, None]), k_ck.dtype)
            dq_bk += product(d_scores_bc, k_ck)
            if REST > 0:
                dq_rest_bk += product(d_scores_bc, k_rest_ck)

    store_columns(dq + head, dq_bk, t_b, stride, K, 0, WIDE)
    if REST > 0:
        store_columns(dq + head, dq_rest_bk, t_b, stride, K, WIDE, REST)


@triton.jit
def attention_d_key(
    q,
    k,
    v,
    d_out,
    log_sum,
    inner,
    until,
    dk,
    dv,
    T: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    WIDE: tl.constexpr,
    REST: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Writes the gradients of a block of keys and values."""
    start = tl.program_id(0) * KEYS
    row, head, sums, stride = offsets(T, H, K)
    s_c = start + tl.arange(0, KEYS)
    until_c = tl.load(until + row + s_c)
    k_ck = load_columns(k + head, s_c, stride, K, 0, WIDE)
    v_ck = load_columns(v + head, s_c, stride, K, 0, WIDE)
    dk_ck = tl.zeros([KEYS, WIDE], tl.float32)
    dv_ck = tl.zeros([KEYS, WIDE], tl.float32)
    if REST > 0:
        k_rest_ck = load_columns(k + head, s_c, stride, K, WIDE, REST)
        v_rest_ck = load_columns(v + head, s_c, stride, K, WIDE, REST)
        dk_rest_ck = tl.zeros([KEYS, REST], tl.float32)
        dv_rest_ck = tl.zeros([KEYS, REST], tl.float32)

    for i in range(start // QUERIES, tl.cdiv(tl.max(until_c, 0), QUERIES)):
        t_b = i * QUERIES + tl.arange(0, QUERIES)
        q_bk = load_columns(q + head, t_b, stride, K, 0, WIDE)
        d_out_bk = load_columns(d_out + head, t_b, stride, K, 0, WIDE)
        scores_cb = product(k_ck, tl.trans(q_bk))
        d_weights_cb = product(v_ck, tl.trans(d_out_bk))
        if REST > 0:
            q_rest_bk = load_columns(q + head, t_b, stride, K, WIDE, REST)
            d_out_rest_bk = load_columns(d_out + head, t_b, stride, K, WIDE, REST)
            scores_cb += product(k_rest_ck, tl.trans(q_rest_bk))
            d_weights_cb += product(v_rest_ck, tl.trans(d_out_rest_bk))
        log_sum_b, inner_b = tl.load(log_sum + sums + t_b), tl.load(inner + sums + t_b)
        weights_cb = tl.exp2(scores_cb * LOG2_E - log_sum_b[None, :])
        weights_cb = tl.where(sees(t_b[None, :], s_c[:, None], until_c[:, None]), weights_cb, 0.0)
        d_scores_cb = cast(weights_cb * (d_weights_cb - inner_b[None, :]), q_bk.dtype)
        weights_cb = cast(weights_cb, d_out_bk.dtype)
        dv_ck += product(weights_cb, d_out_bk)
        dk_ck += product(d_scores_cb, q_bk)
        if REST > 0:
            dv_rest_ck += product(weights_cb, d_out_rest_bk)
            dk_rest_ck += product(d_scores_cb, q_rest_bk)

    store_columns(dk + head, dk_ck, s_c, stride, K, 0, WIDE)
    store_columns(dv + head, dv_ck, s_c, stride, K, 0, WIDE)
    if REST > 0:
        store_columns(dk + head, dk_rest_ck, s_c, stride, K, WIDE, REST)
        store_columns(dv + head, dv_rest_ck, s_c, stride, K, WIDE, REST)
