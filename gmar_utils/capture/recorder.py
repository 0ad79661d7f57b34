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
        tokens: (B, N, D) what pooling and head read: the last block's output, after the final norm if there is one.
        pooling: (B, Q, N) attention of the queries that pool the tokens, a tensor a call.
        activations: (B, N, D) output of the last block's first norm, if there is one.
    """

    def __init__(self, model, blocks, pixel_values, prefix_tokens=None, grid=None, graph=True, join=None):
        """blocks: of the model. prefix_tokens, grid: P and (R, C) where the caller gives them. graph False: no gradient
        below the last block's output. join: cuts the graph between the blocks, so that gradients stay in one; from the
        list of their outputs it makes what pooling and head read."""
        super().__init__()
        self.model, self.name, self.blocks, self.pixel_values = model, type(model).__name__, blocks, pixel_values
        if pixel_values.ndim == 2 and grid is None:  # of words: [CLS], then a row of tokens as they came in
            prefix_tokens = 1 if prefix_tokens is None else prefix_tokens
            grid = (1, pixel_values.shape[1] - prefix_tokens)
        self.prefix_tokens, self.grid, self.given = prefix_tokens, grid, grid is not None
        self.graph, self.join = graph, join
        self.attentions, self.pooling, self.activations, self.tokens, self.outputs = [], [], [], None, []
        self.entered, self.owners = [], []  # blocks as they run, and of each attention
        self.elsewhere = []  # (batch, queries) of attention that no block's map holds
        self.block, self.embeddings, self.again = None, [], False

    def forward(self) -> torch.Tensor:
        """Logits (B, K). ValueError says why a model's attention cannot be rolled out, or its layout is not known."""
        try:
            with ExitStack() as stack:
                for block in self.blocks:
                    stack.callback(block.register_forward_pre_hook(mine(self._enter), with_kwargs=True).remove)
                    stack.callback(block.register_forward_hook(mine(self._leave)).remove)
                for module in filter(is_norm, parts(self.model, without=self.blocks[:-1])):
                    stack.callback(module.register_forward_hook(mine(self._norm)).remove)
                with self:
                    output = self.model(self.pixel_values)
        except (AssertionError, AttributeError, KeyError, TypeError) as error:  # timm asserts its input's size
            raise ValueError(
                f"{self.name} does not run on pixel values of {tuple(self.pixel_values.shape)} "
                f"({type(error).__name__}: {error}). If it needs more than pixels, put it into a module whose forward "
                "takes pixels and returns logits."
            ) from error
        except RuntimeError as error:
            if self.join and (self.elsewhere or self.again):  # what is behind the blocks meets another batch
                raise self._no_chain("it attends outside of its blocks") from error
            raise
        logits = logits_of(output)
        self._check()
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
        try:
            output = func(x, weight, *args, **kwargs)
        except RuntimeError as error:  # more channels, or fewer pixels than a patch has
            if self.entered or out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
            raise ValueError(f"{self.name} cannot embed an input of {tuple(x.shape)}: {reason}.") from None
        if self.entered:
            return output
        if torch.is_inference_mode_enabled():
            raise ValueError(f"{self.name} runs under torch.inference_mode(), which no gradient passes; use no_grad().")
        torch.set_grad_enabled(True)
        self.embeddings.append(output.detach().requires_grad_())  # a leaf for `_in_reading_order`
        return self.embeddings[-1].clone()  # a model may change its tensors in place, but no leaf

    def _enter(self, module, args, kwargs):
        if not self.entered:
            tokens = next((t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)), None)
            if tokens is not None and tokens.ndim == 3 and (self.grid or self.embeddings):
                self._locate(tokens)
            torch.set_grad_enabled(self.graph)
        if module in self.entered:
            raise self._no_chain("its blocks run more than once in one forward pass")
        self.entered.append(module)
        self.block = module

    def _locate(self, tokens):
        """Prefix tokens and grid of the tokens that enter the first block."""
        self.grid = self.grid or tuple(self.embeddings[-1].shape[-2:])
        (rows, columns), count = self.grid, tokens.shape[1]
        if self.prefix_tokens is None:
            self.prefix_tokens = count - rows * columns
        fits = self.prefix_tokens >= 0 and self.prefix_tokens + rows * columns == count
        if not fits or not (self.given or self._in_reading_order(tokens)):
            raise ValueError(
                f"The {count} tokens of {self.name} are not {max(self.prefix_tokens, 0)} prefix tokens and then the "
                f"{rows}×{columns} patches in reading order. Pass the prefix_tokens= and grid=(rows, columns) that "
                "they have; no map can be laid out otherwise."
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
        """A norm in the last block: the one before its attention; or outside of the blocks: the one behind them."""
        if self.block is not None:
            if self.graph and not self.activations and len(self.attentions) == len(self.blocks) - 1:
                self.activations.append(output.requires_grad_())
        elif self.tokens is not None and getattr(output, "shape", None) == self.tokens.shape:
            self.tokens = output

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
            self.pooling.append(attention.mean(1))
        else:
            attention = attention.detach() if self.join else attention
            if self.graph:
                attention.requires_grad_()
            self.attentions.append(attention)
            self.owners.append(self.block)
        return attention.to(value.dtype) @ value

    def _multi_head(self, func, query, key, *args, **kwargs):
        """nn.MultiheadAttention: only its result can be had, mean over heads, which is enough for pooling."""
        if self.block is None and self._pools(len(query), len(key)):
            output, attention = func(query, key, *args, **kwargs | {"need_weights": True, "average_attn_weights": True})
            self.pooling.append(attention)
            return output, attention
        self.elsewhere.append((query.shape[-2], len(query)))
        return func(query, key, *args, **kwargs)

    def _pools(self, queries, keys):
        return self.tokens is not None and queries < keys == self.tokens.shape[1]

    def _leave(self, module, args, output):
        self.block, last = None, module is self.blocks[-1]
        tokens, *rest = output if isinstance(output, tuple) else (output,)
        if not isinstance(tokens, torch.Tensor):
            raise self._no_chain(f"a block returns a {type(tokens).__name__}")
        if last:
            torch.set_grad_enabled(True)
            self.tokens = tokens if self.graph else tokens.detach().clone().requires_grad_()
        if self.join:
            self.outputs.append(tokens)
            tokens = self.join(self.outputs) if last else tokens.detach()
        elif last and not self.graph:
            tokens = self.tokens.clone()
        else:
            return None
        return (tokens, *rest) if isinstance(output, tuple) else tokens

    # Is it one chain of layers? ------------------------------------------------------------------------------------

    def _check(self):
        if not self.attentions:
            raise ValueError(f"{self.name} shows no attention maps: {self._why_none()}.")
        shapes, batch = {tuple(a.shape) for a in self.attentions}, len(self.pixel_values)
        first = self.attentions[0].shape
        if len(shapes) > 1 or len(first) != 4 or first[0] != batch or first[2] != first[3]:
            raise ValueError(
                f"{self.name} attends in shapes {sorted(shapes)}; one global (B, H, N, N) map a layer with "
                f"B = {batch} is needed. Windowed or pyramid attention (Swin, PVT) has no such map: use Grad-CAM "
                "made for it."
            )
        if self.prefix_tokens is None or self.grid is None:
            raise ValueError(
                f"The patch grid of {self.name} is not known: no convolution embeds its patches, or its first block "
                "gets no tokens (B, N, D). Pass grid=(rows, columns) and prefix_tokens=."
            )
        second = [s for s in self.elsewhere if s[1] > 1 and (self.again or s == (batch, first[-1]))]
        if self.owners != self.blocks or second:
            calls = len(self.owners) + len(second)
            raise self._no_chain(f"{calls} attention calls for {len(self.blocks)} blocks in a list")
        queries = sum(a.shape[1] for a in self.pooling)
        if queries > 1:
            raise ValueError(
                f"{self.name} pools its tokens by {queries} queries of attention: which of them a map should start "
                "from is not known. Attention pooling with one query is."
            )
        if self.tokens.ndim != 3 or self.tokens.shape[:2] != (batch, first[-1]):
            raise ValueError(f"The last block of {self.name} gives {tuple(self.tokens.shape)}, not {first[-1]} tokens.")

    def _no_chain(self, reason):
        return ValueError(
            f"The attention of {self.name} is not one chain of layers: {reason}. Models that average several passes, "
            "views or towers, or that attend otherwise than once a block, have no single map: explain each pass by "
            "itself."
        )

    def _why_none(self):
        if any(isinstance(m, nn.MultiheadAttention) for m in self.model.modules()):
            return "it uses nn.MultiheadAttention, which hides attention; load the same model from transformers or timm"
        if self.elsewhere:
            return "it attends outside of any list of blocks; put its blocks into an nn.ModuleList"
        return (
            "it never calls F.scaled_dot_product_attention: a CNN has no attention, and a model with an attention of "
            "its own must be switched to PyTorch's (timm: block.attn.fused_attn = True)"
        )

    # What does the classifier read? --------------------------------------------------------------------------------

    def readout(self, logits: torch.Tensor) -> torch.Tensor:
        """v₀ (B, N) of the pass with these logits, measured; rows sum to 1. ValueError where no map can start there."""
        if self.pooling:
            return self.pooling[0][:, 0].detach().float()
        gradient = None
        if logits.requires_grad:
            mixed = torch.arange(1, logits.shape[1] + 1).sin().to(logits).expand_as(logits)  # every class has its share
            (gradient,) = torch.autograd.grad(logits, self.tokens, mixed, retain_graph=True, allow_unused=True)
        found = self._first_token_alone(logits) if gradient is None else self._read(gradient.float())
        if found is None:
            raise ValueError(
                f"How {self.name} reads its tokens is not known: it reads neither prefix tokens alone, nor a mean, nor "
                f"by attention pooling with one query{', and its head passes no gradient' * (gradient is None)}. No "
                "map can start from them."
            )
        return found.expand(len(logits), -1)

    def _read(self, gradient):
        """v₀ (N,) from the gradient (B, N, D) of the logits at the tokens that pooling and head read.

        A mean over tokens gives all of them the same gradient, whatever the head. Of prefix tokens that are read, each
        counts the same (DeiT's two); beside a mean of patches the prefix counts alone (DINOv2's [CLS]). None: it reads
        nothing, or patches otherwise than in a mean."""
        size, prefix = gradient.abs().amax((0, 2)), self.prefix_tokens
        v = (size > 1e-4 * size.max()).float()

        def as_the_patches(tokens):
            return bool((tokens - gradient[:, prefix : prefix + 1]).abs().max() <= 1e-2 * size.max())

        if v[prefix:].any():
            if not as_the_patches(gradient[:, prefix:]):
                return None
            if v[:prefix].any() and not as_the_patches(gradient):
                v[prefix:] = 0
        return v / v.sum() if v.any() else None

    def _first_token_alone(self, logits):
        """v₀ where the head passes no gradient, as a quantised one: the first token, if the others may be anything."""

        def join(outputs):
            return torch.cat([outputs[-1][:, :1], -outputs[-1][:, 1:].flip(1)], 1)

        again = Recorder(self.model, self.blocks, self.pixel_values, self.prefix_tokens, self.grid, False, join)
        change = (again.forward() - logits).abs().max()
        first = torch.eye(1, self.tokens.shape[1], dtype=torch.float32, device=logits.device)
        return first if change <= 1e-4 * logits.abs().max() else None


_REPLACED = {
    F.scaled_dot_product_attention: Recorder._attend,
    F.multi_head_attention_forward: Recorder._multi_head,
    torch.conv2d: Recorder._convolve,
}


def mine(hook: Callable) -> Callable:
    """A hook for this thread's passes only: another thread may run the model meanwhile."""
    thread = threading.get_ident()
    return lambda *args: hook(*args) if threading.get_ident() == thread else None
