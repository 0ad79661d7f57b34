"""What sees a forward pass: its attention, the patch grid and the tokens at the end; nothing is inferred from names."""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from .checks import out_of_memory
from .layout import is_norm, logits_of, parts


class Recorder(TorchFunctionMode):
    """Replaces `F.scaled_dot_product_attention` by an explicit softmax and keeps its result.

    A function mode reaches every module that calls it, transformers' and timm's, and this thread only. Hooks on the
    blocks say which of them a call belongs to.

    Attributes:
        attentions: L tensors (B, H, N, N).
        prefix_tokens, grid: P and (R, C), from the output of the patch embedding; None where there is no convolution.
        output: (B, N, D) of the last block.
        tokens: (B, N, D) what pooling and head read: the output, after the final norm if there is one.
        pooling: (B, N) attention of the query that pools the tokens, or None.
        activation: (B, N, D) output of the last block's first norm, or None.
    """

    def __init__(
        self,
        blocks: list[nn.Module],
        prefix_tokens: int | None = None,
        grid: tuple[int, int] | None = None,
        graph: bool = True,
        join: Callable | None = None,
    ):
        """prefix_tokens, grid: P and (R, C) where the caller gives them. graph False: no gradient below the last
        block's output. join: cuts the graph between the blocks, so that gradients stay in one; from the list of their
        outputs it makes what pooling and head read."""
        super().__init__()
        self.prefix_tokens, self.grid, self.graph, self.join = prefix_tokens, grid, graph, join
        self.blocks, self.depth, self.given = blocks, len(blocks), grid is not None
        self.attentions, self.pooling, self.activation, self.tokens, self.outputs = [], None, None, None, []
        self.entered, self.owners = [], []  # blocks as they run, and of each attention
        self.elsewhere = []  # (batch, queries) of attention in no block
        self.block, self.embeddings, self.pooled, self.hidden, self.again = None, [], 0, False, False

    def forward(self, model: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits (B, K). ValueError says why a model's attention cannot be rolled out, or its layout is not known."""
        self.name, self.batch = type(model).__name__, len(pixel_values)
        self.words = pixel_values.shape[1] if pixel_values.ndim == 2 else 0
        try:
            with ExitStack() as stack:
                for i, block in enumerate(self.blocks):
                    enter, leave = mine(partial(self._enter, i)), mine(partial(self._leave, i))
                    stack.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
                    stack.callback(block.register_forward_hook(leave).remove)
                for module in filter(is_norm, parts(self.blocks[-1]) if self.blocks else ()):
                    stack.callback(module.register_forward_hook(mine(self._norm)).remove)
                for module in filter(is_norm, parts(model, without=self.blocks)):
                    stack.callback(module.register_forward_hook(mine(self._final_norm)).remove)
                with self:
                    output = model(pixel_values)
        except (AssertionError, AttributeError, KeyError, TypeError) as error:  # timm asserts its input's size
            raise ValueError(
                f"{self.name} does not run on pixel values of {tuple(pixel_values.shape)} ({type(error).__name__}: "
                f"{error}). If it needs more than pixels, put it into a module whose forward takes pixels and returns "
                "logits."
            ) from error
        except RuntimeError as error:
            if self.join and (self.elsewhere or self.again):  # what is behind the blocks meets another batch
                raise self._no_chain("it attends outside of its blocks") from error
            raise
        logits = logits_of(output)
        self._check(model)
        if not bool(logits.isfinite().all()):
            raise ValueError(
                f"The logits of {self.name} are NaN or infinite: its weights are, or they are too large for "
                f"{logits.dtype}. Try bfloat16 or float32."
            )
        return logits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        run = partial(_REPLACED[func], self, func) if func in _REPLACED else func
        return run(*args, **(kwargs or {}))

    # What the functions and hooks see, in the order of a forward pass ---------------------------------------------

    def _convolve(self, func, x, weight, *args, **kwargs):
        self.again |= self.block is None and bool(self.entered or self.elsewhere and self.embeddings)
        if self.entered:
            return func(x, weight, *args, **kwargs)
        try:
            output = func(x, weight, *args, **kwargs)
        except RuntimeError as error:  # more channels, or fewer pixels than a patch has
            if out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
            raise ValueError(f"{self.name} cannot embed an input of {tuple(x.shape)}: {reason}.") from None
        if torch.is_inference_mode_enabled():
            raise ValueError(f"{self.name} runs under torch.inference_mode(), which no gradient passes; use no_grad().")
        torch.set_grad_enabled(True)
        self.embeddings.append(output.detach().requires_grad_())  # a leaf for `_in_reading_order`
        return self.embeddings[-1].clone()  # a model may change its tensors in place, but no leaf

    def _enter(self, index, module, args, kwargs):
        if not self.entered:
            tokens = next((t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)), None)
            if tokens is not None and tokens.ndim == 3:
                self._locate(tokens)
            torch.set_grad_enabled(self.graph)
        if index in self.entered:
            raise self._no_chain("its blocks run more than once in one forward pass")
        self.entered.append(index)
        self.block = index

    def _locate(self, tokens):
        """Prefix tokens and grid of the tokens that enter the first block."""
        count = tokens.shape[1]
        if self.grid is None and self.words:  # [CLS], then a row of tokens as they came in
            self.prefix_tokens = 1 if self.prefix_tokens is None else self.prefix_tokens
            self.grid, self.given = (1, self.words - self.prefix_tokens), True
        if self.grid is None:
            if not self.embeddings or self.embeddings[-1].ndim != 4:
                raise ValueError(
                    f"{self.name} has no patch embedding that is a convolution, so the patch grid is not known. "
                    "Pass grid=(rows, columns) and prefix_tokens=."
                )
            self.grid = tuple(self.embeddings[-1].shape[-2:])
        rows, columns = self.grid
        prefix = count - rows * columns if self.prefix_tokens is None else self.prefix_tokens
        if prefix < 0 or prefix + rows * columns != count:
            raise ValueError(
                f"{self.name} attends over {count} tokens, but {prefix} prefix tokens and a {rows}×{columns} patch "
                f"grid make {prefix + rows * columns}. Pass prefix_tokens= and grid=(rows, columns) that fit."
            )
        self.prefix_tokens = prefix
        if not self.given and not self._in_reading_order(tokens):
            raise ValueError(
                f"The {count} tokens of {self.name} are not {prefix} prefix tokens and then the {rows}×{columns} "
                "patches in reading order. Pass prefix_tokens= and grid=(rows, columns) if they are; no map can be "
                "laid out otherwise."
            )

    def _in_reading_order(self, tokens):
        """Whether the prefix holds no patch, and the first row's ends and the last token hold just their own."""
        (rows, columns), prefix = self.grid, self.prefix_tokens
        asked = torch.zeros_like(tokens)
        asked[0, [*range(prefix), prefix, prefix + columns - 1, -1]] = torch.linspace(1, 2, tokens.shape[-1]).to(tokens)
        try:
            found = torch.autograd.grad(tokens, self.embeddings, asked, allow_unused=True)
        except RuntimeError:  # detached, or changed in place
            return False
        held = [[] if g is None else (g[0].abs().sum(0) > 0).nonzero().tolist() for g in found]
        corners = sorted({(0, 0), (0, columns - 1), (rows - 1, columns - 1)})
        return [tuple(place) for place in held[-1]] == corners and not any(held[:-1])

    def _norm(self, module, args, output):
        if self.graph and self.activation is None and len(self.attentions) == self.depth - 1:
            self.activation = output if output.requires_grad else output.requires_grad_()  # before the last attention

    def _attend(self, func, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **options):
        if self.block is None and not self._pools(query.shape[-2], key.shape[-2]):
            self.elsewhere.append((query.shape[0], query.shape[-2]))
            return func(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **options)
        scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None:
            allowed = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -torch.inf) if allowed else scores + attn_mask
        attention = scores.softmax(-1, dtype=torch.float32)
        if self.block is None:
            self._pool(attention.mean(1))
        else:
            if self.join:
                attention = attention.detach()
            if self.graph and not attention.requires_grad:
                attention.requires_grad_()
            self.attentions.append(attention)
            self.owners.append(self.block)
        return attention.to(value.dtype) @ value

    def _multi_head(self, func, query, key, *args, **kwargs):
        """nn.MultiheadAttention: only its result can be had, mean over heads, which is enough for pooling."""
        if self.block is not None:
            self.hidden = True
        elif self._pools(len(query), len(key)):
            output, attention = func(query, key, *args, **kwargs | {"need_weights": True, "average_attn_weights": True})
            self._pool(attention)
            return output, attention
        else:
            self.elsewhere.append((query.shape[-2], len(query)))
        return func(query, key, *args, **kwargs)

    def _pools(self, queries, keys):
        return self.tokens is not None and queries < keys == self.tokens.shape[1]

    def _pool(self, attention):
        """Attention (B, Q, N) behind the last block, mean over heads."""
        self.pooled += attention.shape[1]
        self.pooling = attention[:, 0].detach().float()

    def _leave(self, index, module, args, output):
        self.block, last = None, index == self.depth - 1
        tokens, *rest = output if isinstance(output, tuple) else (output,)
        if not isinstance(tokens, torch.Tensor):
            raise self._no_chain(f"a block returns a {type(tokens).__name__}")
        if last:
            torch.set_grad_enabled(True)
            self.output = tokens.detach()
            self.tokens = tokens if self.graph else self.output.clone().requires_grad_()
        if self.join:
            self.outputs.append(tokens)
            tokens = self.join(self.outputs) if last else tokens.detach()
        elif last and not self.graph:
            tokens = self.tokens.clone()
        else:
            return None
        return (tokens, *rest) if isinstance(output, tuple) else tokens

    def _final_norm(self, module, args, output):
        if self.tokens is not None and getattr(output, "shape", None) == self.tokens.shape:
            self.tokens = output

    # Is it one chain of layers? ------------------------------------------------------------------------------------

    def _check(self, model):
        if not self.attentions:
            raise ValueError(f"{self.name} shows no attention maps: {self._why_none(model)}.")
        shapes = {tuple(a.shape) for a in self.attentions}
        first = self.attentions[0].shape
        if len(shapes) > 1 or len(first) != 4 or first[0] != self.batch or first[2] != first[3]:
            raise ValueError(
                f"{self.name} attends in shapes {sorted(shapes)}; one global (B, H, N, N) map a layer with "
                f"B = {self.batch} is needed. Windowed or pyramid attention (Swin, PVT) has no such map: use Grad-CAM "
                "made for it."
            )
        if self.prefix_tokens is None or self.grid is None:
            raise ValueError(f"The first block of {self.name} gets no tokens (B, N, D): its patch grid is not known.")
        chain = list(range(self.depth))
        second = [s for s in self.elsewhere if s[1] > 1 and (self.again or s == (self.batch, first[-1]))]
        if self.entered != chain or self.owners != chain or second:
            calls = len(self.owners) + len(second)
            raise self._no_chain(f"{calls} attention calls for {self.depth} blocks in a list")
        if self.pooled > 1 or self.tokens.ndim != 3 or self.tokens.shape[:2] != (self.batch, first[-1]):
            raise ValueError(
                f"{self.name} pools its tokens by {self.pooled} queries of attention: which of them a map should "
                "start from is not known. Attention pooling with one query is."
                if self.pooled > 1
                else f"The last block of {self.name} returns {tuple(self.tokens.shape)}, not its {first[-1]} tokens."
            )

    def _no_chain(self, reason):
        return ValueError(
            f"The attention of {self.name} is not one chain of layers: {reason}. Models that average several passes, "
            "views or towers, or that attend otherwise than once a block, have no single map: explain each pass by "
            "itself."
        )

    def _why_none(self, model):
        if self.hidden or any(isinstance(m, nn.MultiheadAttention) for m in model.modules()):
            return (
                "it uses nn.MultiheadAttention, whose attention PyTorch computes out of reach; load the same "
                "architecture from transformers or timm"
            )
        if self.elsewhere:
            return "it attends outside of any list of blocks; put its blocks into an nn.ModuleList"
        return (
            "it never calls F.scaled_dot_product_attention: a CNN has no attention, and a model with an attention of "
            "its own must be switched to PyTorch's (timm: block.attn.fused_attn = True)"
        )


_REPLACED = {
    F.scaled_dot_product_attention: Recorder._attend,
    F.multi_head_attention_forward: Recorder._multi_head,
    torch.conv2d: Recorder._convolve,
}


def readout(gradient: torch.Tensor, prefix_tokens: int) -> torch.Tensor | None:
    """v₀ (B, N) from the gradient (B, N, D) of the logits at the tokens that pooling and head read; rows sum to 1.

    A mean over tokens gives all of them the same gradient, whatever the head. Of prefix tokens that are read, each
    counts the same (DeiT's two); beside a mean of patches the prefix counts alone (DINOv2's [CLS]). None: it reads
    nothing, or patches otherwise than in a mean.
    """
    gradient = gradient.float()
    size = gradient.abs().amax((0, 2))
    v = (size > 1e-4 * size.max()).float()
    read, patches = v.tolist(), gradient[:, prefix_tokens:]
    if any(read[prefix_tokens:]):

        def differ(tokens):
            return bool((tokens - patches[:, :1]).abs().max() > 1e-2 * size.max())

        if differ(patches):
            return None
        if any(read[:prefix_tokens]) and differ(gradient):
            v[prefix_tokens:] = 0
    return (v / v.sum()).expand(len(gradient), -1) if any(read) else None


def mine(hook: Callable) -> Callable:
    """A hook for this thread's passes only: another thread may run the model meanwhile."""
    thread = threading.get_ident()
    return lambda *args: hook(*args) if threading.get_ident() == thread else None
