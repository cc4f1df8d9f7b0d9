"""Phi-3's layers as they are computed in training: the same numbers with fewer passes over memory.

    with fast_layers(model):
        trainer.train()

The base is frozen, so most of what autograd keeps and casts is kept and cast for nothing. Inside
the block, adapter projections, norms and gates run as one function each. What a layer does that is
not plain LoRA (DoRA, several adapters, merged weights) stays PEFT's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.phi3.modeling_phi3 import (
    Phi3Attention,
    Phi3MLP,
    Phi3RMSNorm,
    eager_attention_forward,
)

from phi3lora.training.fast.attention import compute_dtype

Weight = Callable[[torch.dtype], Tensor]


@contextmanager
def fast_layers(model: nn.Module) -> Iterator[int]:
    """Replace what can be replaced while the block runs; yields how many layers were."""
    replaced = []
    for module in model.modules():
        forward = _fast_forward(module)
        if forward is not None:
            replaced.append(module)
            # On the instance: the class, and every other model, stays as it is.
            module.forward = forward.__get__(module)
    try:
        yield len(replaced)
    finally:
        for module in replaced:
            del module.forward


def _fast_forward(module: nn.Module) -> Callable[..., Any] | None:
    """The quicker forward of a layer, or None where there is none."""
    if isinstance(module, LoraLayer) and isinstance(module, nn.Module):
        return _lora_forward if _is_plain_lora(module) else None
    if isinstance(module, Phi3Attention):
        return _attention_forward
    if isinstance(module, Phi3MLP) and module.config.hidden_act == "silu":
        return _mlp_forward
    if isinstance(module, Phi3RMSNorm) and not module.weight.requires_grad:
        return _norm_forward
    return None


def _is_plain_lora(layer: Any) -> bool:
    """One unmerged adapter of two plain matrices on a linear layer whose weight can be read."""
    adapters = layer.active_adapters
    if len(adapters) != 1 or layer.merged or layer.disable_adapters:
        return False
    name = adapters[0]
    return (
        name in layer.lora_A
        and name not in layer.lora_variant
        and not layer.lora_bias[name]
        and not getattr(layer, "fan_in_fan_out", False)
        and _weight_of(layer.get_base_layer()) is not None
        and not any(p.requires_grad for p in layer.get_base_layer().parameters())
    )


def _weight_of(layer: nn.Module) -> Weight | None:
    """How to get a frozen layer's weight (out, in) in a precision; None where that is unknown."""
    if type(layer) is nn.Linear:
        return lambda dtype: layer.weight.to(dtype)
    if type(layer).__name__ in {"Linear4bit", "LinearNF4", "LinearFP4"}:
        from bitsandbytes.functional import dequantize_4bit

        weight: Any = layer.weight
        # A weight that FSDP has gathered is a plain one; the layer remembers how to read it.
        state: Any = getattr(weight, "quant_state", None) or layer.quant_state
        return lambda dtype: dequantize_4bit(weight.data, state).to(dtype)
    return None


def _lora_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """PEFT's `lora.Linear`: W x + scaling · B A dropout(x), in one function."""
    base = self.get_base_layer()
    weight = _weight_of(base)
    assert weight is not None
    if self.disable_adapters:  # the reference of DPO: the base, in the very same precision
        dtype = compute_dtype(x)
        return nn.functional.linear(x.to(dtype), weight(dtype), base.bias)
    name = self.active_adapters[0]
    dropout = self.lora_dropout[name]
    rate = dropout.p if self.training and isinstance(dropout, nn.Dropout) else 0.0
    a, b = self.lora_A[name].weight, self.lora_B[name].weight
    return _LoraLinear.apply(x, a, b, weight, base.bias, self.scaling[name], rate)


class _LoraLinear(torch.autograd.Function):
    """x (…, in), A (rank, in), B (out, rank) → (…, out), with gradients for these three alone.

    The matrices of the adapter are multiplied in the precision of the layer; their gradients come
    back in their own. The update is added to W x while that is written, and its gradient to that
    of x, so neither is a tensor of its own.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        weight: Weight,
        bias: Tensor | None,
        scaling: float,
        rate: float,
    ) -> Tensor:
        dtype = compute_dtype(x)
        flat = x.reshape(-1, x.shape[-1]).to(dtype)  # (tokens, in)
        a_low, b_low = a.to(dtype), b.to(dtype) * scaling
        out = nn.functional.linear(flat, weight(dtype), bias)
        dropped, keep = _drop(flat, rate, a.dtype)
        inner = dropped @ a_low.t()  # (tokens, rank)
        out.addmm_(inner, b_low.t())
        ctx.save_for_backward(dropped, keep, inner, a_low, b_low)
        ctx.weight, ctx.scaling, ctx.rate = weight, scaling, rate
        ctx.kinds = x.shape, x.dtype, a.dtype, b.dtype
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dropped, keep, inner, a, b = ctx.saved_tensors
        shape, x_dtype, a_dtype, b_dtype = ctx.kinds
        grad = grad.reshape(-1, grad.shape[-1]).to(a.dtype)  # (tokens, out)
        grad_inner = grad @ b  # (tokens, rank), scaled
        grad_a = (grad_inner.t() @ dropped).to(a_dtype) if ctx.needs_input_grad[1] else None
        grad_b = None
        if ctx.needs_input_grad[2]:
            grad_b = (grad.t() @ inner).to(b_dtype) * ctx.scaling
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ ctx.weight(a.dtype)
            if keep is None:
                grad_x.addmm_(grad_inner, a)
            elif keep.dtype == torch.bool:
                grad_x += torch.ops.aten.native_dropout_backward(
                    grad_inner @ a, keep, 1 / (1 - ctx.rate)
                )
            else:
                grad_x.addcmul_(grad_inner @ a, keep)
            grad_x = grad_x.view(shape).to(x_dtype)
        return grad_x, grad_a, grad_b, None, None, None, None


def _drop(x: Tensor, rate: float, drawn_in: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Dropout of x, and what it was multiplied by: 0 or 1 / (1 - rate); None without dropout.

    The draw is that of `nn.Dropout` on x in the adapter's precision, where PEFT makes it, so that
    the same seed drops the same entries with and without this module. On a GPU the draw, the
    product and a mask of bools are one kernel: 5 bytes an entry instead of 24.
    """
    if rate == 0.0:
        return x, None
    if x.is_cuda:
        dropped, mask = torch.ops.aten.native_dropout(x, rate, True)
        return dropped, mask
    keep = torch.empty_like(x, dtype=drawn_in).bernoulli_(1 - rate).div_(1 - rate).to(x.dtype)
    return x * keep, keep


def _attention_forward(
    self: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """Phi3Attention without a cache: the fused projection is taken apart and turned at once."""
    if past_key_values is not None:
        return type(self).forward(
            self, hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs
        )
    cos, sin = position_embeddings
    heads = self.config.num_attention_heads, self.num_key_value_heads
    q, k, v = _Rotate.apply(self.qkv_proj(hidden_states), cos, sin, *heads, self.head_dim)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(
        self.config._attn_implementation, eager_attention_forward
    )
    out, weights = attend(
        self,
        *(x.transpose(1, 2) for x in (q, k, v)),
        attention_mask,
        dropout=self.attention_dropout if self.training else 0.0,
        scaling=self.scaling,
        sliding_window=getattr(self.config, "sliding_window", None),
        **kwargs,
    )
    return self.o_proj(out.reshape(*hidden_states.shape[:-1], -1)), weights


class _Rotate(torch.autograd.Function):
    """(batch, seq, all heads · dim) → q, k, v: (batch, seq, heads, dim), q and k turned by RoPE.

    With halves (a, b) of a head: (a cos − b sin, b cos + a sin). The way back turns the other
    way and writes all three into one tensor, where slices would be padded with zeros and added.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int, dim: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        if qkv.is_cuda:
            # Over a quantized base the angles are float32, and would make q and k twice as wide
            # only to be cast back for the kernel.
            cos, sin = cos.to(qkv.dtype), sin.to(qkv.dtype)
        dtype = torch.promote_types(qkv.dtype, cos.dtype)
        q, k, v = qkv.view(*qkv.shape[:-1], -1, dim).split([heads, kv_heads, kv_heads], -2)
        cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)  # (batch, seq, 1, turned part of dim)
        ctx.save_for_backward(cos, sin)
        ctx.kinds = qkv.shape, qkv.dtype, dim
        turned = [_turn(x.to(dtype), cos, sin, torch.empty_like(x, dtype=dtype)) for x in (q, k)]
        return turned[0], turned[1], v.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        shape, dtype, dim = ctx.kinds
        out = torch.empty(shape, dtype=dtype, device=cos.device)
        sizes = [grad.shape[-2] for grad in grads]
        parts = out.view(*shape[:-1], -1, dim).split(sizes, -2)
        # The angle's sine changes places with its sign: what went to b with sin comes back to a.
        half = sin.shape[-1] // 2
        back = -torch.cat([sin[..., half:], sin[..., :half]], -1)
        for grad, part in zip(grads[:2], parts[:2], strict=True):
            _turn(grad.to(dtype), cos.to(dtype), back.to(dtype), part)
        parts[2].copy_(grads[2])
        return out, None, None, None, None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> Tensor:
    """Rotary embedding of x (…, heads, dim) into `out`; what cos does not reach is copied."""
    size = cos.shape[-1]
    half = size // 2
    (a, b), (out_a, out_b) = (t[..., :size].split(half, -1) for t in (x, out))
    torch.mul(a, cos[..., :half], out=out_a).addcmul_(b, sin[..., :half], value=-1)
    torch.mul(b, cos[..., half:], out=out_b).addcmul_(a, sin[..., half:])
    if size < x.shape[-1]:
        out[..., size:] = x[..., size:]
    return out


def _mlp_forward(self: Any, hidden_states: Tensor) -> Tensor:
    """Phi3MLP: down(up · silu(gate)), without copies of the two halves."""
    return self.down_proj(_Gate.apply(self.gate_up_proj(hidden_states)))


class _Gate(torch.autograd.Function):
    """(…, 2n) holding gate and up → (…, n): up · silu(gate)."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, -1)
        return nn.functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        out = torch.empty_like(gate_up)
        grad_gate, grad_up = out.chunk(2, -1)
        torch.mul(grad, nn.functional.silu(gate), out=grad_up)
        torch.ops.aten.silu_backward(grad * up, gate, grad_input=grad_gate)
        return out


def _norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
    """Phi3RMSNorm with a frozen weight."""
    fused = hidden_states.is_cuda and hidden_states.dtype == self.weight.dtype
    norm = _FusedNorm if fused and _HAS_FUSED_NORM else _Norm
    return norm.apply(hidden_states, self.weight, self.variance_epsilon)


class _Norm(torch.autograd.Function):
    """weight · x / rms(x), sums in float32; gradient for x alone.

    With n = x / rms(x) and g = grad · weight: d x = (g − n · mean(g · n)) / rms(x).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(epsilon))  # 1 / rms
        ctx.save_for_backward(x, scale, weight)
        return weight * (wide * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, scale, weight = ctx.saved_tensors
        normal = x.float().mul_(scale)
        wide = (grad * weight).float()
        inner = (wide * normal).mean(-1, keepdim=True)
        return wide.addcmul_(normal, inner, value=-1).mul_(scale).to(x.dtype), None, None


_HAS_FUSED_NORM = hasattr(torch.ops.aten, "_fused_rms_norm_backward")


class _FusedNorm(torch.autograd.Function):
    """The same as one kernel each way, which PyTorch has for GPUs; sums in float32 likewise."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        out, scale = torch.ops.aten._fused_rms_norm(x, [x.shape[-1]], weight, epsilon)
        ctx.save_for_backward(x, scale, weight)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, scale, weight = ctx.saved_tensors
        grad_x: Tensor = torch.ops.aten._fused_rms_norm_backward(
            grad.contiguous(), x, [x.shape[-1]], scale, weight, [True, False]
        )[0]
        return grad_x, None, None
