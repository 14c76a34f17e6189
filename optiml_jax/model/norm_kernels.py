"""The kernel of `norm`, in Triton's language; imported only where it runs. d is a column, of which those from D on are
zero."""

import triton
import triton.language as tl

from optiml_jax.model.attention_kernels import cast


@triton.jit
def norm_gradients(
    x,
    mean,
    inverse,
    scale,
    d_skip,
    d_y,
    d_x,
    d_scale,
    d_bias,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    """Writes the gradient of every PROGRAMS-th row of x, and this program's sums for scale and bias."""
    program = tl.program_id(0)
    column_d = tl.arange(0, WIDTH)
    is_real_d = column_d < D
    scale_d = tl.load(scale + column_d, mask=is_real_d, other=0.0).to(tl.float32)
    d_scale_d = tl.zeros([WIDTH], tl.float32)
    d_bias_d = tl.zeros([WIDTH], tl.float32)
    for row in range(program, ROWS, PROGRAMS):
        place_d = tl.cast(row, tl.int64) * D + column_d
        x_d = tl.load(x + place_d, mask=is_real_d, other=0.0).to(tl.float32)
        d_y_d = tl.load(d_y + place_d, mask=is_real_d, other=0.0).to(tl.float32)
        d_skip_d = tl.load(d_skip + place_d, mask=is_real_d, other=0.0).to(tl.float32)
        inverse_1 = tl.load(inverse + row)
        z_d = (x_d - tl.load(mean + row)) * inverse_1
        d_scale_d += d_y_d * z_d
        d_bias_d += d_y_d
        d_z_d = d_y_d * scale_d
        centred_d = d_z_d - tl.sum(d_z_d, 0) / D - z_d * (tl.sum(d_z_d * z_d, 0) / D)
        tl.store(d_x + place_d, cast(centred_d * inverse_1 + d_skip_d, d_x.dtype.element_ty), mask=is_real_d)
    tl.store(d_scale + program * D + column_d, d_scale_d, mask=is_real_d)
    tl.store(d_bias + program * D + column_d, d_bias_d, mask=is_real_d)
