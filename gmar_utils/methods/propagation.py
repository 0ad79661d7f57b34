"""LibraGrad, CP-LRP and AttnLRP: the model's own forward pass with another backward pass.

Where a function is affine, its inputs and biases times their gradients sum to its value, so that each product is that
input's share. A transformer is not affine; these methods hold some of its factors constant in the backward pass. The
forward pass stays as it is. The code follows the papers; none of it is their authors'.
"""

from contextlib import ExitStack

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ..capture import Trace
from ..capture.checks import choice
from ..capture.layout import logits_of
from ..capture.recorder import mine
from ..capture.tracing import differentiate


def libra(trace: Trace, layers: str = "all") -> torch.Tensor:
    """LibraGrad's input × gradient (B, N), signed [mehri2025libragrad]: Σ_l Σ_d X⁽ˡ⁾ · ∂y/∂X⁽ˡ⁾.

    X⁽ˡ⁾ are the tokens that enter block l. Constant in the backward pass are attention, the deviation that a LayerNorm
    divides by, and the factor f(x)/x of every activation f; a gated MLP's factors get half of the gradient each.

    Args:
        trace: Supplies the model, the images and the target; its attention is not read.
        layers: "all" sums over the blocks; "input" takes the first block alone, which is CP-LRP [ali2022conservative]
            at the tokens; "upper" sums over the upper half of the blocks. The sum over blocks is not the authors'
            FullGrad+, which also adds the products of all biases with their gradients.

    Returns:
        Signed token scores (B, N). The scores of one block and the products of the biases above it sum to y.

    Raises:
        ValueError: For another `layers`; for a model whose products do not sum to y, because it calls something that
            the rules do not know (a normalisation or an activation of its own, say).
    """
    choice("layers", layers, ("all", "input", "upper"))
    scores = _complete(trace, slice(None))
    start = len(scores) // 2 if layers == "upper" else 0
    return scores[start : 1 if layers == "input" else None].sum(0)


def attnlrp(trace: Trace) -> torch.Tensor:
    """AttnLRP (B, N), signed [achtibat2024attnlrp]: input × gradient at the tokens that enter the first block.

    As `libra(layers="input")`, but attention keeps its gradient. Its two products, query × key and attention × value,
    give each factor half, which leaves a quarter to queries and keys and half to values. The paper's maps of ViTs also
    use the γ rule in the linear layers, with a γ tuned for the model. It is left out here; maps without it are noisy.

    Args:
        trace: Supplies the model, the images and the target; its attention is not read.

    Returns:
        Signed token scores (B, N). They do not sum to y.

    Raises:
        ValueError: As `libra`, whose other rules it shares: those are checked on the first image.
    """
    _complete(trace, slice(1))
    return _propagate(trace, Rules(constant_attention=False), slice(None))[0][0]


def _complete(trace, images):
    """Every block's scores (L, B, N) under `libra`'s rules; a ValueError unless they and the biases' share make y."""
    before = trace.logits[images].float()
    scores, parts, logits = _propagate(trace, Rules(), images)
    missing = parts.sum().abs() / parts.abs().sum()
    changed = (logits.float() - before).abs().max() / before.abs().max().clamp_min(1e-6)
    half = {torch.float16, torch.bfloat16} & {logits.dtype, trace.pixel_values.dtype}
    cast = torch.is_autocast_enabled(logits.device.type) or torch.get_float32_matmul_precision() != "highest"
    tolerance = 0.1 if half or cast else 1e-3
    if not (missing <= tolerance and changed <= tolerance):
        raise _unknown(
            f"inputs and biases times their gradients miss the score by {missing:.1%}, and the logits change by "
            f"{changed:.1%}; both must be at most {tolerance:.1%}"
        )
    return scores


def _unknown(reason):
    return ValueError(
        "The model calls something that the rules of libra and attnlrp do not know, such as an activation or a "
        f"normalisation of its own: {reason}. Use another method, such as gmar, or add a rule to "
        "gmar_utils.methods.propagation."
    )


def _propagate(trace, rules, images):
    """For some images: every block's scores Σ_d X⁽ˡ⁾ · ∂y/∂X⁽ˡ⁾ (L, B, N); −y, the sums of the first block's scores and
    each bias's product, which sum to 0; the logits."""
    entering = []

    @mine
    def enter(module, args, kwargs):
        tokens = next(t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor))
        entering.append(tokens if entering else tokens.requires_grad_())  # nothing before the first block has one

    with trace.recording(images) as recorder, ExitStack() as stack:
        for block in recorder.blocks:
            stack.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
        with rules:
            logits = logits_of(recorder.model(recorder.pixel_values))
        y = trace.score_of(logits, images)
        inputs = [*entering, *rules.biases]
        gradients = differentiate(y, inputs, materialize_grads=True)  # zeros for a bias of a query
    products = [x.detach().float() * g for x, g in zip(inputs, gradients, strict=True)]
    scores = torch.stack([p.sum(-1) for p in products[: len(entering)]])
    parts = [-y.detach().float(), scores[0].sum(1), *(p.sum()[None] for p in products[len(entering) :])]
    return scores, torch.cat(parts), logits.detach()


class Rules(TorchFunctionMode):
    """Changes the backward pass of the functions called inside it, wherever the stream passes: what has a gradient.

    Forward results stay. Every constant that is added to the stream is replaced by a leaf and kept in `biases`.
    """

    def __init__(self, constant_attention: bool = True):
        super().__init__()
        self.constant_attention, self.biases = constant_attention, []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in _RULES:
            named = [kwargs.pop(k) for k in ("input", "other") if k in kwargs]  # their places, whatever their names
            result = _RULES[name](self, func, *args, *named, **kwargs)
        else:
            result = func(*args, **kwargs)
        if name in _CONSTANT:
            result = result.detach()
        given = _tensors([args, kwargs])
        if name not in _SHAPES and any(_on_stream(t) or hasattr(t, "_held") for t in given):
            for tensor in _tensors(result):
                if not tensor.requires_grad and all(tensor is not t for t in given):
                    tensor._held = True  # a constant to the gradient, but not to the input
        return result

    def _bias(self, value, like):
        if hasattr(value, "_held"):
            raise _unknown("it adds to the stream what has no gradient, though it depends on the input")
        leaf = torch.as_tensor(value, dtype=like.dtype, device=like.device)
        leaf = leaf if leaf.requires_grad else leaf.detach().requires_grad_()
        self.biases.append(leaf)
        return leaf

    def _gate(self, func, x, *args, **kwargs):
        """f(x) = x · stop(f(x)/x): Φ(x) for GELU, σ(x) for SiLU, one over the length for a normalised vector."""
        safe = torch.where(x == 0, 1e-4, x.detach())
        return x * (func(safe, *args, **kwargs) / safe)

    def _layer_norm(self, func, x, normalized_shape, weight=None, bias=None, eps=1e-5, *_):
        axes, exact = tuple(range(-len(normalized_shape), 0)), x.to(torch.promote_types(x.dtype, torch.float32))
        centred = exact - exact.mean(axes, keepdim=True)
        normed = (centred * (centred.detach().square().mean(axes, keepdim=True) + eps).rsqrt()).to(x.dtype)
        normed = normed if weight is None else normed * weight
        return normed if bias is None else self._add(torch.add, normed, bias)

    def _rms_norm(self, func, x, normalized_shape, weight=None, eps=None):
        normed = self._gate(func, x, normalized_shape, None, eps)
        return normed if weight is None else normed * weight

    def _linear(self, func, x, weight, bias=None, *args, **kwargs):
        bias = self._bias(bias, weight) if bias is not None and _on_stream(x) else bias
        return func(x, weight, bias, *args, **kwargs)

    def _add(self, func, a, b, **kwargs):
        if _on_stream(a) != _on_stream(b):
            a, b = (a, self._bias(b, a)) if _on_stream(a) else (self._bias(a, b), b)
        return func(a, b, **kwargs)

    def _concatenate(self, func, tensors, *args, **kwargs):
        if any(map(_on_stream, tensors)):
            tensors = [t if _on_stream(t) else self._bias(t, t) for t in tensors]
        return func(tensors, *args, **kwargs)

    def _multiply(self, func, a, b, **kwargs):
        if _on_stream(a) and _on_stream(b):
            a, b = _share(a, 0.5), _share(b, 0.5)
        return func(a, b, **kwargs)

    def _divide(self, func, a, b, **kwargs):
        return func(a, b.detach() if _on_stream(b) else b, **kwargs)

    def _attend(self, func, query, key, value, *args, **kwargs):
        if self.constant_attention:
            query, key = query.detach(), key.detach()
        else:
            query, key, value = _share(query, 0.25), _share(key, 0.25), _share(value, 0.5)
        return func(query, key, value, *args, **kwargs)

    def _pool(self, func, query, key, value, *args, **kwargs):
        """nn.MultiheadAttention: values of zero give what its biases, which cannot be seen, add to every output."""
        key, share = (key.detach(), 1) if self.constant_attention else (_share(key, 0.25), 0.5)
        added = func(query.detach(), key.detach(), torch.zeros_like(value), *args, **kwargs)[0]
        output, attention = func(query, key, _share(value, share), *args, **kwargs)
        return self._add(torch.add, output - added, added), attention


def _tensors(value):
    """Every tensor in nested lists, tuples and dictionaries."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _on_stream(value):
    return isinstance(value, torch.Tensor) and value.requires_grad


def _share(x, part):
    """x itself, with this part of its gradient."""
    if x.requires_grad:
        x = x.view_as(x)
        x.register_hook(lambda gradient: gradient * part)
    return x


# By name, because torch.add, Tensor.add and + are three functions of one name.
_RULES = {
    **dict.fromkeys(("gelu", "silu", "mish", "hardswish", "tanh", "normalize"), Rules._gate),
    **dict.fromkeys(("linear", "conv1d", "conv2d"), Rules._linear),
    **dict.fromkeys(("add", "sub"), Rules._add),
    "layer_norm": Rules._layer_norm,
    "rms_norm": Rules._rms_norm,
    "cat": Rules._concatenate,
    "mul": Rules._multiply,
    "div": Rules._divide,
    "scaled_dot_product_attention": Rules._attend,
    "multi_head_attention_forward": Rules._pool,
}
_CONSTANT = {"sigmoid", "erf", "rsqrt", "norm", "linalg_vector_norm"}  # QuickGELU is x · σ(1.702 x)
_SHAPES = {"to", "type_as", "expand_as", "view_as", "reshape_as", "zeros_like", "ones_like", "empty_like", "full_like"}
