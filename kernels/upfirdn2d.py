"""Up-sampling, FIR filter and down-sampling: each output pixel gathers the few input pixels that its taps meet."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._launch import INT32_LIMIT, lanes, on_device

_WARPS = 4


def upfirdn2d(
    x: Tensor,
    f: Tensor,
    up_x: int,
    up_y: int,
    down_x: int,
    down_y: int,
    pad_x: int,
    pad_y: int,
    flip_filter: bool,
    gain: float,
    channels_last: bool,
    y: Tensor,
) -> None:
    """Write x, up-sampled, filtered and down-sampled.

    Args:
        x, y: ``[N, C, H, W]``, dense in one order, one dtype.
        f: ``[taps]`` or ``[h, w]``, float32.
        pad_x, pad_y: zeros before the image; negative ones crop.
    """
    if y.numel() == 0:
        return
    _, channels, in_h, in_w = x.shape
    out_h, out_w = y.shape[2:]
    rows, cols = (y.numel() // channels, channels) if channels_last else (y.numel() // out_w, out_w)
    elements = _WARPS * lanes() * (16 // x.element_size() if channels_last else 4)
    tile_cols = min(elements, triton.next_power_of_2(cols))
    tile_rows = min(elements // tile_cols, triton.next_power_of_2(rows))
    grid = (triton.cdiv(rows, tile_rows) * triton.cdiv(cols, tile_cols),)
    height, width = f.shape[0], f.shape[-1]
    # Multiples of the factors, so that no dividend below is negative.
    shift_x, shift_y = triton.cdiv(max(pad_x, 0), up_x), triton.cdiv(max(pad_y, 0), up_y)
    with on_device(x):
        _gather_fir[grid](
            x, f, y, rows, cols, in_h, in_w, out_h, out_w, height, width, up_x, up_y, down_x, down_y,
            shift_x * up_x - pad_x, shift_y * up_y - pad_y, shift_x, shift_y, gain, triton.cdiv(height, up_y),
            TAPS_X=triton.cdiv(width, up_x), ROW=f.dim() == 1, FLIP=flip_filter, PLANAR=not channels_last,
            ROWS=tile_rows, COLS=tile_cols, LONG=max(x.numel(), y.numel()) >= INT32_LIMIT, num_warps=_WARPS,
        )  # fmt: skip


# x: [images, in_h, in_w] (planar) or [images, in_h, in_w, cols]; y likewise; f: [width] or [height, width] float32.
@triton.jit
def _gather_fir(
    x, f, y, rows, cols, in_h, in_w, out_h, out_w, height, width, up_x, up_y, down_x, down_y,
    start_x, start_y, shift_x, shift_y, gain, taps_y,
    TAPS_X: tl.constexpr, ROW: tl.constexpr, FLIP: tl.constexpr, PLANAR: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64) if LONG else tl.program_id(0)
    col_tiles = tl.cdiv(cols, COLS)
    row = (program // col_tiles * ROWS + tl.arange(0, ROWS))[:, None]
    col = (program % col_tiles * COLS + tl.arange(0, COLS))[None, :]
    mask = (row < rows) & (col < cols)
    if PLANAR:
        image, out_y, out_x = row // out_h, row % out_h, col
    else:
        image, out_y, out_x = row // (out_h * out_w), row // out_w % out_h, row % out_w
    # Output o meets inputs base + j through the taps first + j up.
    at_x, at_y = out_x * down_x + start_x, out_y * down_y + start_y
    first_x, first_y = (up_x - at_x % up_x) % up_x, (up_y - at_y % up_y) % up_y
    base_x, base_y = (at_x + first_x) // up_x - shift_x, (at_y + first_y) // up_y - shift_y
    total = tl.zeros([ROWS, COLS], tl.float32)
    for j in range(taps_y):
        in_y, tap_y = base_y + j, first_y + j * up_y
        row_mask = (tap_y < height) & (in_y >= 0) & (in_y < in_h)
        for i in tl.static_range(TAPS_X):
            in_x, tap_x = base_x + i, first_x + i * up_x
            inside = mask & row_mask & (tap_x < width) & (in_x >= 0) & (in_x < in_w)
            ty = tap_y if FLIP else height - 1 - tap_y
            tx = tap_x if FLIP else width - 1 - tap_x
            if ROW:
                tap = tl.load(f + ty, mask=row_mask, other=0.0) * tl.load(f + tx, mask=tap_x < width, other=0.0)
            else:
                tap = tl.load(f + ty * width + tx, mask=row_mask & (tap_x < width), other=0.0)
            pixel = (image * in_h + in_y) * in_w + in_x
            offset = pixel if PLANAR else pixel * cols + col
            total += tap * tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * cols + col, (total * gain).to(y.dtype.element_ty), mask=mask)
