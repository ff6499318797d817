"""swish(depthwise(swish(a))), the middle of an inverted residual, as one kernel on an NVIDIA GPU.

These features, six times as many as outside a cell, cause most of a chain's memory traffic. torch's operations read and
write them eighteen times in a step and its gradient, this kernel eleven times. It computes the swishes where the
convolution reads and writes, and again in the backward pass.
"""

from __future__ import annotations

import sys
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from vaebm.fast.layers import Layer, Tape

KERNEL = 5
"""Kernel size of the convolution in inverted residuals (NVAE section 3.3)."""

ROWS, COLUMNS, CHANNELS = 16, 16, 64
"""Largest tile of one program: rows, columns (a power of two) and channels of one image."""

PHASES = 4
"""Adjacent columns that share their reads: each value is read, and its swish computed, twice instead of five times."""


@triton.jit
def _sigmoid(x):  # type: ignore[no-untyped-def]
    # 1 / (1 + 2^(−x log₂ e)) by hardware approximations, 2⁻²² each; Triton's division takes three times as long
    return tl.inline_asm_elementwise(
        "{ .reg .f32 t; mul.ftz.f32 t, $1, 0fBFB8AA3B; ex2.approx.ftz.f32 t, t; "
        "add.ftz.f32 t, t, 0f3F800000; rcp.approx.ftz.f32 $0, t; }",
        "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def _swish_slope(x):  # type: ignore[no-untyped-def]
    sigmoid = _sigmoid(x)
    return sigmoid * (1.0 + x * (1.0 - sigmoid))


@triton.jit
def _load(source, before, at, mask, BACKWARD: tl.constexpr):  # type: ignore[no-untyped-def]
    """Input of the convolution: swish(a), or in the backward pass the gradient of b, through the second swish."""
    x = tl.load(source + at, mask=mask, other=0.0).to(tl.float32)
    if BACKWARD:
        return x * _swish_slope(tl.load(before + at, mask=mask, other=0.0).to(tl.float32))
    return x * _sigmoid(x)


@triton.jit
def _add(sums, x, weight, known, channels, SHIFT: tl.constexpr, PHASES: tl.constexpr):  # type: ignore[no-untyped-def]
    """Add the column at offset `SHIFT` − 2 from the first phase to the sums, by one row of the weight."""
    new = ()
    for phase in tl.static_range(PHASES):
        if SHIFT - phase >= 0 and SHIFT - phase < 5:
            new += (sums[phase] + x * tl.load(weight + (SHIFT - phase) * channels, mask=known, other=0.0),)  # type: ignore[assignment]
        else:
            new += (sums[phase],)  # type: ignore[assignment]
    return new


@triton.jit
def _convolve(  # type: ignore[no-untyped-def]
    source, before, weight, bias, a, out, swished, height, width, channels, strips, blocks,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, PHASES: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    """Convolve a tile: a strip of rows of one image, for some columns and channels.

    Each input row adds to the running sums of five output rows; the oldest sum is then complete.

    Forward: `source` a, `out` b = depthwise(swish(a)) + bias, `swished` swish(b).
    Backward: `source` the gradient of swish(b), `before` b, `out` the gradient of a; the weight is rotated by 180°.
    """
    place = tl.program_id(0)
    block = place % blocks
    strip = place // blocks % strips
    image = (place // (blocks * strips)).to(tl.int64)
    columns = block * COLUMNS + PHASES * tl.arange(0, COLUMNS // PHASES)[:, None]
    features = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    known = features < channels
    start = image * height * width * channels + columns * channels + features
    first = strip * ROWS

    zero = tl.zeros((COLUMNS // PHASES, CHANNELS), tl.float32)
    empty = zero if BACKWARD else zero + tl.load(bias + features, mask=known, other=0.0)
    none = (empty,) * PHASES
    sums0, sums1, sums2, sums3, sums4 = none, none, none, none, none
    for step in range(ROWS + 4):
        row = first - 2 + step
        if (row >= 0) & (row < height):
            for shift in tl.static_range(PHASES + 4):
                column = columns + (shift - 2)
                mask = (column >= 0) & (column < width) & known
                x = _load(source, before, start + (row * width + (shift - 2)) * channels, mask, BACKWARD)
                sums0 = _add(sums0, x, weight + 20 * channels + features, known, channels, shift, PHASES)
                sums1 = _add(sums1, x, weight + 15 * channels + features, known, channels, shift, PHASES)
                sums2 = _add(sums2, x, weight + 10 * channels + features, known, channels, shift, PHASES)
                sums3 = _add(sums3, x, weight + 5 * channels + features, known, channels, shift, PHASES)
                sums4 = _add(sums4, x, weight + features, known, channels, shift, PHASES)
        whole = row - 2
        there = (whole >= first) & (whole < first + ROWS) & (whole < height)
        for phase in tl.static_range(PHASES):
            mask = there & (columns + phase < width) & known
            at = start + (whole * width + phase) * channels
            value = sums0[phase]
            if BACKWARD:
                value *= _swish_slope(tl.load(a + at, mask=mask, other=0.0).to(tl.float32))
            else:
                tl.store(swished + at, (value * _sigmoid(value)).to(swished.dtype.element_ty), mask=mask)
            tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)
        sums0, sums1, sums2, sums3, sums4 = sums1, sums2, sums3, sums4, none


def _launch(source: Tensor, *others: Tensor, backward: bool) -> None:
    """Run `_convolve` on its first seven arguments."""
    batch, channels, height, width = source.shape
    rows, columns = min(ROWS, height), max(min(COLUMNS, triton.next_power_of_2(width)), PHASES)
    strips, blocks = triton.cdiv(height, rows), triton.cdiv(width, columns)
    grid = (batch * strips * blocks, triton.cdiv(channels, CHANNELS))
    with torch.cuda.device(source.device):
        _convolve[grid](
            source, *others, height, width, channels, strips, blocks,
            ROWS=rows, COLUMNS=columns, CHANNELS=CHANNELS, PHASES=PHASES, BACKWARD=backward, num_warps=4,
        )  # fmt: skip


class SwishDepthwiseSwish(Layer):
    """swish(depthwise(swish(a)) + bias), weight (C, 1, 5, 5) and bias (C,), with sums in single precision."""

    def __init__(self, weight: Tensor, bias: Tensor):
        self.weight = weight.float()[:, 0].permute(1, 2, 0).contiguous()
        self.adjoint_weight, self.bias = self.weight.flip(0, 1).contiguous(), bias.float()

    def forward(self, x: Tensor, tape: Tape | None) -> Tensor:
        """(B, C, H, W) on a GPU, same shape."""
        a = x.contiguous(memory_format=torch.channels_last)
        b, c = torch.empty_like(a), torch.empty_like(a)
        _launch(a, a, self.weight, self.bias, a, b, c, backward=False)
        if tape is not None:
            tape.tensors.extend((a, b))
        return c

    def backward(self, gradient: Tensor, tape: Tape) -> Tensor:
        """Gradient as a new tensor: each pixel reads its neighbours."""
        b, a = tape.tensors.pop(), tape.tensors.pop()
        found, gradient = torch.empty_like(a), gradient.contiguous(memory_format=torch.channels_last)
        _launch(gradient, b, self.adjoint_weight, self.bias, a, found, found, backward=True)
        return found


@cache
def compiles() -> bool:
    """Whether this machine can compile the kernel, which needs a C compiler; if not, prints a message once."""
    layer = SwishDepthwiseSwish(*(torch.zeros(shape, device="cuda") for shape in ((1, 1, KERNEL, KERNEL), (1,))))
    try:
        layer.forward(torch.zeros(1, 1, 1, 1, device="cuda"), None)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a missing or broken compiler raises many types
        first, *_ = str(error).splitlines() or [type(error).__name__]
        print(
            f"the fused depthwise convolution cannot be compiled here ({first}); chains use torch's, which is slower",
            file=sys.stderr,
        )
        return False
    return True
