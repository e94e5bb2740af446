"""Quantization, faults and BatchNorm of `ftnas_jax.nn.hardware`, in PyTorch eager on CPU.

What was measured for it, on 2 cores with AVX-512 and a channels-last tensor of 64x32x32x20:

* Adding and subtracting 1.5 · 2^23 steps rounds to a multiple of a step, half to even: 0.1 ms,
  where `torch.fake_quantize_per_tensor_affine`, with the same result, takes 2 to 3 ms.
* A BatchNorm that sums over wide rows, see `_rows`: 0.4 ms forward and 0.7 ms backward, where
  `torch.nn.functional.batch_norm` takes 1.1 ms and 1.7 ms.
* Positions of faults by geometric gaps: 0.3 ms at a rate of 5 %, where one uniform number for each
  element takes 4 ms.
"""

import dataclasses
import math

import torch
from torch import Tensor

from ftnas_jax.faults import MiBB, Place, StuckAt, format_text
from ftnas_jax.fixed_point import FixedPoint
from ftnas_jax.nn.hardware import Hardware
from ftnas_jax.nn.norm import EPSILON, MOMENTUM

_ROUNDER = 1.5 * 2**23  # floats at this size are whole numbers, those next to it even in turn
_ROW = 256  # channels and positions that reductions take as one row, about


# Fixed point


def step_of(low: float, high: float, fmt: FixedPoint) -> float:
    """The smallest power of two by which no number of [low, high] overflows when it is rounded.

    Raises:
        FloatingPointError: a bound is not finite; the search diverged.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        raise FloatingPointError("features or weights are not finite")
    length = fmt.bits - 1
    if low or high:
        length = fmt.bits - math.frexp(max(high, -low))[1]
        while round(high * 2.0**length) > fmt.max_code or round(low * 2.0**length) < fmt.min_code:
            length -= 1
    return 2.0**-length


def tensor_step(x: Tensor, fmt: FixedPoint) -> float:
    """`step_of` a tensor and of 0."""
    # Two reductions are faster than `aminmax`.
    return step_of(min(x.amin().item(), 0.0), max(x.amax().item(), 0.0), fmt)


def round_to_steps(x: Tensor, step: float, *, out: Tensor) -> None:
    """The multiples of `step` nearest to x, half to even, into `out`, which may be x."""
    torch.add(x, _ROUNDER * step, out=out).sub_(_ROUNDER * step)


# Faults


def failing_positions(size: int, rate: float, generator: torch.Generator) -> Tensor:
    """int64 positions, in order, of independent failures among `size` elements.

    The gaps between them are geometric. Rates are exact to 2^-24.
    """
    if rate >= 1:
        return torch.arange(size)
    if rate <= 0:
        return torch.arange(0)
    expected = size * rate
    count = int(expected + 6 * math.sqrt(expected)) + 8
    ends = _failure_ends(count, rate, generator)
    while ends[-1] < size:  # hardly ever
        ends = torch.cat([ends, ends[-1] + _failure_ends(count, rate, generator)])
    inside = torch.searchsorted(ends, float(size), right=True)
    return ends[: int(inside)].sub_(1).to(torch.int64)


def _failure_ends(count: int, rate: float, generator: torch.Generator) -> Tensor:
    """float64 sums of `count` gaps g, P(g) = rate (1 - rate)^(g-1)."""
    gaps = torch.rand(count, generator=generator).neg_().log1p_().mul_(1 / math.log1p(-rate))
    return gaps.floor_().add_(1).cumsum(0, dtype=torch.float64)


def bias_features_(
    f: Tensor, step: float, rate: float, fmt: FixedPoint, generator: torch.Generator
) -> None:
    """MiBB (Eq. 8) in place on the flat features f, multiples of `step`."""
    positions = failing_positions(len(f), rate, generator)
    powers = step * 2.0 ** torch.arange(fmt.bits)
    biases = torch.cat([powers, -powers])
    drawn = biases[torch.randint(2 * fmt.bits, positions.shape, generator=generator)]
    faulty = f.index_select(0, positions).add_(drawn)
    f.index_copy_(0, positions, faulty.clamp_(fmt.min_code * step, fmt.max_code * step))


def stick_weights_(
    codes: Tensor, model: StuckAt, fmt: FixedPoint, generator: torch.Generator
) -> None:
    """adSAF (Eq. 9) in place on flat codes, held as float32."""
    total = model.p0 + model.p1
    if total == 0:
        return
    positions = failing_positions(len(codes), total, generator)
    negative = codes.index_select(0, positions) < 0
    bound = torch.where(negative, -float(fmt.max_code), float(fmt.max_code))
    low = torch.rand(positions.shape, generator=generator) < model.p0 / total
    codes.index_copy_(0, positions, bound.masked_fill_(low, 0.0))


# One pass


@dataclasses.dataclass
class Pass:
    """One pass of a network through the hardware.

    Attributes:
        hardware: number formats and faults.
        faulty: whether faults act.
        generator: of the faults and of dropout.
        records: whether BatchNorms update their running statistics.
        by_running: whether they normalize by them; such a pass has no gradient.
        held: by parameter the weights that the hardware holds for it.
    """

    hardware: Hardware
    faulty: bool
    generator: torch.Generator
    records: bool = False
    by_running: bool = False
    held: dict[Tensor, Tensor] = dataclasses.field(default_factory=dict)

    def hold(self, kernels: list[Tensor], sound: list[Tensor]) -> None:
        """Quantize weights, all of them at once; `kernels` may fail, `sound` ones never do."""
        weights, fmt = kernels + sound, self.hardware.weights
        if fmt is None:
            self.held = {w: w for w in weights}
            return
        steps = [tensor_step(w.detach(), fmt) for w in weights]
        codes = torch.empty(sum(w.numel() for w in weights))
        parts = codes.split([w.numel() for w in weights])
        for w, step, part in zip(weights, steps, parts, strict=True):
            torch.mul(_flat(w.detach()), 1 / step, out=part)
        codes.round_()
        for model in self.hardware.models("weights") if self.faulty else ():
            may_fail = codes[: sum(w.numel() for w in kernels)]
            stick_weights_(may_fail, model, fmt, self.generator)
        for step, part in zip(steps, parts, strict=True):
            part.mul_(step)
        values = [_unflat(part, w) for w, part in zip(weights, parts, strict=True)]
        self.held = dict(zip(weights, _StraightThrough.apply(values, *weights), strict=True))

    @torch.no_grad()
    def write_(self, f: Tensor, macs: int | None = None) -> Tensor:
        """Quantize features in place; behind `macs` multiply-accumulates they may fail.

        Autograd does not see the change, so the gradient passes straight through. `f` must be a
        tensor that no operation keeps for its gradient, such as the output of a convolution.
        """
        if self.hardware.features is not None:
            flat = _flat(f)
            self._write(flat, flat, macs)
        return f

    def _write(self, x: Tensor, out: Tensor, macs: int | None) -> None:
        fmt = self.hardware.features
        step = tensor_step(x, fmt)
        round_to_steps(x, step, out=out)
        if macs is not None and self.faulty:
            for model in self.hardware.models("features"):
                bias_features_(out, step, model.probability(Place("", macs)), fmt, self.generator)

    def normalize(
        self,
        f: Tensor,
        scale: Tensor | None,
        offset: Tensor | None,
        macs: int | None,
        running: Tensor | None = None,
    ) -> Tensor:
        """BatchNorm, then `write_`. Overwrites `f`; `running` is [2, C], means and variances."""
        if not self.by_running:
            return _Normalize.apply(f, scale, offset, self, macs, running)
        factor = (running[1] + EPSILON).rsqrt_()
        factor = factor if scale is None else factor * scale
        shift = -running[0] * factor if offset is None else offset - running[0] * factor
        return self.write_(f.mul_(factor[:, None, None]).add_(shift[:, None, None]), macs)

    def add_relu(self, x: Tensor, y: Tensor, write: bool) -> Tensor:
        """The ReLU of a sum, quantized where `write` says so. Overwrites `x`."""
        return _AddRelu.apply(x, y, self.hardware.features if write else None)


def check_faults(hardware: Hardware) -> None:
    """Raise ValueError where a fault model is not one of those written here."""
    for model in hardware.faults:
        same = isinstance(model, MiBB) and (model.layers, model.per) == ("*", "image")
        if isinstance(model, StuckAt):
            same = (model.layers, model.cells, model.accumulated) == ("!classifier", "one", 1)
        if not same:
            raise ValueError(
                f"{format_text(model)}: the PyTorch peer has only mibb, and stuck_at with "
                "layers=!classifier, both at any rate"
            )


class _StraightThrough(torch.autograd.Function):
    """`values` in the forward pass, the gradients of `weights` in the backward pass."""

    @staticmethod
    def forward(ctx, values, *weights):
        return tuple(values)

    @staticmethod
    def backward(ctx, *gradients):
        return None, *gradients


class _Normalize(torch.autograd.Function):
    """BatchNorm, quantization and faults; the gradient is that of the BatchNorm."""

    @staticmethod
    def forward(ctx, f, scale, offset, run: Pass, macs, running):
        # No operation keeps `f` for its gradient, so the normalized features can replace it.
        rows = _rows(f.detach())
        size = rows.numel() // f.shape[1]
        mean = _channel_sums(rows, f) / size
        rows.sub_(_across(mean, rows))
        written = torch.empty_like(f)
        out = torch.mul(rows, rows, out=_rows(written))
        variance = _channel_sums(out, f) / size
        if run.records:
            running.lerp_(torch.stack([mean, variance]), 1 - MOMENTUM)
        factor = variance.add_(EPSILON).rsqrt_()
        rows.mul_(_across(factor, rows))
        y = rows
        if scale is not None:
            y = torch.addcmul(_across(offset, rows), rows, _across(scale, rows), out=out)
        if run.hardware.features is None:
            out.copy_(y)
        else:
            run._write(y.view(-1), out.view(-1), macs)
        ctx.save_for_backward(rows, factor, scale)
        return written

    @staticmethod
    def backward(ctx, g):
        normalized, factor, scale = ctx.saved_tensors
        rows = _rows(g.contiguous(memory_format=torch.channels_last))
        size = rows.numel() // g.shape[1]
        total = _channel_sums(rows, g)
        product = torch.mul(rows, normalized)
        along = _channel_sums(product, g)
        # With s = scale · factor: s · (g - mean(g) - normalized · mean(g · normalized)).
        torch.addcmul(rows, normalized, _across(along / -size, rows), out=product)
        slope = factor if scale is None else factor * scale
        product.sub_(_across(total / size, rows)).mul_(_across(slope, rows))
        affine = (None, None) if scale is None else (along, total)
        return _unflat(product, g), *affine, None, None, None


class _AddRelu(torch.autograd.Function):
    """Sum, ReLU, quantization; the gradient is that of the ReLU of the sum."""

    @staticmethod
    def forward(ctx, x, y, fmt):
        # No operation keeps `x` for its gradient.
        total = x.detach().add_(y)
        ctx.save_for_backward(total)
        out = total.clamp_min(0)
        if fmt is not None:
            round_to_steps(out, step_of(0.0, out.amax().item(), fmt), out=out)
        return out

    @staticmethod
    def backward(ctx, g):
        # Not by the quantized sum, which is 0 where a small one is not.
        own = torch.ops.aten.threshold_backward(g, *ctx.saved_tensors, 0)
        return own, own, None


# Views


def _flat(x: Tensor) -> Tensor:
    """A channels-last tensor [B, C, H, W] in the order of its memory, or any [m, n], as [size]."""
    # A view, or an error: what is written to it must reach x.
    return (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).view(-1)


def _unflat(flat: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_flat` for any view of it."""
    if like.dim() != 4:
        return flat.view(like.shape)
    batch, channels, height, width = like.shape
    return flat.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _rows(x: Tensor) -> Tensor:
    """A channels-last tensor as [n, r · C]: r positions one after the other.

    Vector instructions are at their best where the last axis is some hundred numbers long.
    """
    channels = x.shape[1]
    positions = x.numel() // channels
    wide = math.gcd(positions, 2 ** max(0, round(math.log2(_ROW / channels))))
    return _flat(x).view(-1, wide * channels)


def _channel_sums(rows: Tensor, like: Tensor) -> Tensor:
    """[C] sums over all positions."""
    return rows.sum(0).view(-1, like.shape[1]).sum(0)


def _across(per_channel: Tensor, rows: Tensor) -> Tensor:
    """[C] repeated to the width of `rows`."""
    # In a seventh of the time of `repeat`.
    return torch.cat([per_channel] * (rows.shape[1] // len(per_channel)))
