"""The kernels of `cache_attention`, in Triton's language; imported only where they run.

c is a position in a page, k a column of a head, q a row that shares a read, s a page of a row.
"""

import triton
import triton.language as tl

from optiml_jax.model.attention_kernels import LOG2_E, START, cast, load_columns, product, store_columns


@triton.jit
def load_column_vector(x, K: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr):
    """The columns from FIRST on of one row of a head."""
    columns_k = FIRST + tl.arange(0, WIDTH)
    return tl.load(x + columns_k, mask=columns_k < K, other=0.0)


@triton.jit
def load_page(page, new, is_filled_c, is_new_c, c, K: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr):
    """Columns of the filled positions of a page and of the new token; 0 elsewhere."""
    columns_k = FIRST + tl.arange(0, WIDTH)
    filled_ck = tl.load(
        page + c[:, None] * K + columns_k[None, :],
        mask=is_filled_c[:, None] & (columns_k < K)[None, :],
        other=0.0,
    )
    new_k = load_column_vector(new, K, FIRST, WIDTH)
    return tl.where(is_new_c[:, None], new_k[None, :], filled_ck)


@triton.jit
def copy_columns(target, source, K: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr):
    """Copies the columns from FIRST on of one row of a head."""
    columns_k = FIRST + tl.arange(0, WIDTH)
    tl.store(target + columns_k, load_column_vector(source, K, FIRST, WIDTH), mask=columns_k < K)


@triton.jit
def cache_attention_read(
    layer,
    count,
    page,
    index,
    row,
    queries,
    position,
    q,
    key,
    value,
    keys,
    values,
    out,
    top,
    total,
    ROWS: tl.constexpr,
    PAGES: tl.constexpr,
    S: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    WIDE: tl.constexpr,
    REST: tl.constexpr,
    PAGE: tl.constexpr,
    QUERIES: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    """Writes the part of the output that comes from each page, and the new keys and values into their pages."""
    h, c = tl.program_id(0), tl.arange(0, PAGE)
    first_page = tl.load(layer).to(tl.int64) * PAGES
    for number in range(tl.program_id(1), tl.load(count), PROGRAMS):
        first, its_row = tl.load(index + number) * PAGE, tl.load(row + number)
        its_position = tl.load(position + its_row)
        # The new token's page belongs to its row alone; in a page that rows share, all positions are filled.
        is_filled_c, is_new_c = first + c < its_position, first + c == its_position
        place = ((first_page + tl.load(page + number)) * H + h) * PAGE * K
        new = (its_row * H + h) * K
        keys_ck = load_page(keys + place, key + new, is_filled_c, is_new_c, c, K, 0, WIDE)
        values_ck = load_page(values + place, value + new, is_filled_c, is_new_c, c, K, 0, WIDE)
        query_q = tl.load(queries + number * QUERIES + tl.arange(0, QUERIES))
        read_q = tl.minimum(query_q, ROWS - 1) * H + h
        scores_qc = product(load_columns(q, read_q, K, K, 0, WIDE), tl.trans(keys_ck))
        if REST > 0:
            keys_rest_ck = load_page(keys + place, key + new, is_filled_c, is_new_c, c, K, WIDE, REST)
            values_rest_ck = load_page(values + place, value + new, is_filled_c, is_new_c, c, K, WIDE, REST)
            scores_qc += product(load_columns(q, read_q, K, K, WIDE, REST), tl.trans(keys_rest_ck))

        if (first <= its_position) & (its_position < first + PAGE):
            new_place = place + (its_position - first) * K
            copy_columns(keys + new_place, key + new, K, 0, WIDE)
            copy_columns(values + new_place, value + new, K, 0, WIDE)
            if REST > 0:
                copy_columns(keys + new_place, key + new, K, WIDE, REST)
                copy_columns(values + new_place, value + new, K, WIDE, REST)

        scores_qc = tl.where((is_filled_c | is_new_c)[None, :], scores_qc * LOG2_E, -float("inf"))
        top_q = tl.maximum(tl.max(scores_qc, 1), START)
        weights_qc = tl.exp2(scores_qc - top_q[:, None])
        write_q = (query_q.to(tl.int64) * S + tl.load(index + number)) * H + h
        store_columns(out, product(cast(weights_qc, values_ck.dtype), values_ck), write_q, K, K, 0, WIDE)
        if REST > 0:
            store_columns(out, product(cast(weights_qc, values_ck.dtype), values_rest_ck), write_q, K, K, WIDE, REST)
        tl.store(top + write_q, top_q)
        tl.store(total + write_q, tl.sum(weights_qc, 1))


@triton.jit
def cache_attention_sum(
    pages,
    out,
    top,
    total,
    result,
    S: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    WIDE: tl.constexpr,
    REST: tl.constexpr,
):
    """Sums the parts of each row; 0 for rows without pages."""
    row, h, s = tl.program_id(0), tl.program_id(1), tl.arange(0, S)
    is_used_s = s < tl.load(pages + row)
    part_s = (row.to(tl.int64) * S + s) * H + h
    top_s = tl.load(top + part_s, mask=is_used_s, other=START)
    weight_s = tl.exp2(top_s - tl.max(top_s, 0))
    whole = tl.sum(weight_s * tl.load(total + part_s, mask=is_used_s, other=0.0), 0)
    scale_s = weight_s / tl.where(whole > 0, whole, 1.0)
    sum_columns(result + (row * H + h) * K, out, part_s, is_used_s, scale_s, K, 0, WIDE)
    if REST > 0:
        sum_columns(result + (row * H + h) * K, out, part_s, is_used_s, scale_s, K, WIDE, REST)


@triton.jit
def sum_columns(result, out, part_s, is_used_s, scale_s, K: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr):
    """Writes the scaled sum of the columns from FIRST on of a row's parts."""
    columns_k = FIRST + tl.arange(0, WIDTH)
    is_real_k = columns_k < K
    part_sk = tl.load(
        out + part_s[:, None] * K + columns_k[None, :], mask=is_used_s[:, None] & is_real_k[None, :], other=0.0
    )
    sum_k = tl.sum(part_sk * scale_s[:, None], 0)
    tl.store(result + columns_k, cast(sum_k, result.dtype.element_ty), mask=is_real_k)
