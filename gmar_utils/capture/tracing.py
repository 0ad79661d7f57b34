"""One forward and one backward pass of a whole batch, seen through its attention; nothing is left in the model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from .checks import check_pixel_values
from .layout import unwrap
from .recorder import Recorder
from .settling import once, settled
from .target import class_score, parse_target, resolve_target

SEEN = ("attentions", "logits", "target", "against", "prefix_tokens", "grid", "readout")


class Trace:
    """A forward pass, seen through its attention, and the backward pass when `gradients` is read.

    Attributes:
        attentions: L tensors (B, H, N, N), float32; every row sums to 1.
        logits: (B, K).
        target: (B,) class explained.
        against: (B,) class b of a contrast y = y_a − y_b, or None.
        prefix_tokens: P, tokens in front of the patches.
        grid: (R, C), N = P + R·C.
        readout: (B, N) v₀, the tokens that the classifier reads; each row sums to 1.
        model: what is traced, for methods that run a pass of their own; None in a trace made by hand.
        pixel_values: (B, channels, height, width).
        layout: (P, (R, C)) as the caller gave them, each of them or None.
    """

    def __init__(self, model=None, pixel_values=None, wanted=None, layout=(None, None), graph=True, **seen):
        """`trace` makes one of a model: wanted is its target, layout P and (R, C) as given. Without a model, `seen`
        holds the attributes above, and "gradients"."""
        self.model, self.pixel_values = model, pixel_values
        self.layout, self._wanted, self._keeps_graph, self._graph = layout, wanted, graph, None
        self.__dict__ |= seen if model is not None else {"against": None} | seen

    def __getattr__(self, name):
        """What the forward pass gives, at the first use."""
        if name not in SEEN or self.__dict__.get("model") is None:
            raise AttributeError(f"A trace has no attribute {name!r}.")
        self.forward(self._keeps_graph)
        return self.__dict__[name]

    def forward(self, graph: bool) -> None:
        """Run the model; graph: keep what a backward pass needs."""
        with self.recording(graph=graph) as recorder:
            logits = recorder.forward()
            y = self.score(recorder, logits)
            self.readout = recorder.readout(logits)
        self.attentions = tuple(a.detach() for a in recorder.attentions)
        self._graph = (y, recorder.attentions, recorder.activations) if graph else None

    @contextmanager
    def recording(self, images: slice = slice(None), **options: object) -> Iterator[Recorder]:
        """The `settled` model, for a pass of a method's own, with gradients on also inside no_grad.

        Args:
            images: those that run.
            **options: graph and join, as `Recorder` takes them.

        Yields:
            A recorder for one forward pass. Its `pixel_values` are copied where they were made under inference_mode,
            which autograd refuses.
        """
        model, x = unwrap(self.model), self.pixel_values[images]
        with settled(model) as blocks, torch.inference_mode(False), torch.enable_grad():
            yield Recorder(model, blocks, x.clone() if x.is_inference() else x, *self.layout, **options)

    def score(self, recorder: Recorder, logits: torch.Tensor) -> torch.Tensor:
        """y (B,) of a pass; what the pass says of classes and layout is kept."""
        self.logits, self.prefix_tokens, self.grid = logits.detach(), recorder.prefix_tokens, recorder.grid
        self.target = resolve_target(self.model, logits, self._wanted)
        contrast = isinstance(self._wanted, tuple)
        self.against = resolve_target(self.model, logits, self._wanted[1]) if contrast else None
        return self.score_of(logits)

    def score_of(self, logits: torch.Tensor, images: slice | torch.Tensor = slice(None)) -> torch.Tensor:
        """y (b,) of what is asked about these images, from their logits (b, K)."""
        return class_score(logits, self.target[images], None if self.against is None else self.against[images])

    @once
    def gradients(self) -> tuple[torch.Tensor, ...]:
        """L tensors ∂y/∂A (B, H, N, N), float32: one activations-only backward at the first use, with the weights of
        that moment: read them before the model is changed. ValueError where no gradient passes."""
        y, attentions, activations = self._with_graph()
        found, self._graph = differentiate(y, attentions + activations), None  # the backward pass uses the graph up
        if activations:
            self.__dict__.setdefault("activation", (activations[0].detach().float(), found[-1]))
        return found[: len(attentions)]

    @once
    def activation(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The output (B, N, D) of the last block's first norm, in front of its attention, and its gradient, float32."""
        y, _, activations = self._with_graph()
        if not activations:
            raise ValueError(
                f"The last block of {type(self.model).__name__} has no norm in front of its attention, which Grad-CAM "
                "reads. Use a method that needs attention only, such as gmar."
            )
        return activations[0].detach().float(), *differentiate(y, activations, retain_graph=True)

    def patches(self, scores: torch.Tensor) -> torch.Tensor:
        """Token scores (B, N) → patch map (B, R, C)."""
        return scores[:, self.prefix_tokens :].reshape(-1, *self.grid)

    def _with_graph(self):
        if self._graph is None:  # nothing has run, or without a graph, or the graph is used up
            self.forward(graph=True)
        return self._graph


def trace(
    model: nn.Module,
    pixel_values: torch.Tensor,
    target: int | Sequence[int] | np.ndarray | torch.Tensor | None = None,
    prefix_tokens: int | None = None,
    grid: tuple[int, int] | None = None,
    *,
    gradients: bool = True,
    lazy: bool = False,
) -> Trace:
    """Attention of every layer, and its gradient on demand: one forward and one activations-only backward a batch.

    Args:
        model: any module that calls `F.scaled_dot_product_attention` once in each of a list of blocks, and returns
            logits, or has `.logits` or the key "logits"; also behind the usual wrappers.
        pixel_values: (B, channels, height, width), a floating-point tensor or array, or what a processor returns. Of a
            model of words, such as BertForSequenceClassification: token ids (B, N) of sentences of one length, or what
            a tokenizer returns; the grid is then the row (1, N − P) of tokens after the first, [CLS].
        target: None (the predicted class) | a class id | (B,) ids as list, array or tensor | a tuple (a, b), the
            contrast y = y_a − y_b; with one logit, 1 explains y and 0 explains −y.
        prefix_tokens: P, and
        grid: (R, C): only for modules whose patch embedding is not a convolution.
        gradients: False keeps no graph for the backward pass (attention rollout needs none).
        lazy: True waits with the forward pass until something is read: a method with a pass of its own, such as
            Grad-CAM, then gives its logits to the trace.

    Raises:
        ValueError: saying why, for models without one chain of (B, H, N, N) attention (CNNs, windowed attention,
            `nn.MultiheadAttention`, several passes in one), and for those whose layout or read-out is not known.
        IndexError: a target outside the model's classes.
    """
    pixel_values = check_pixel_values(pixel_values, model)
    wanted = parse_target(target, len(pixel_values))
    found = Trace(model, pixel_values, wanted, (prefix_tokens, grid), gradients)
    if not lazy:
        found.forward(gradients)
    return found


def differentiate(y: torch.Tensor, inputs: Sequence[torch.Tensor], **options: bool) -> tuple[torch.Tensor, ...]:
    """∂Σy/∂x, float32, for each input x; options of `torch.autograd.grad`. ValueError, in words, where none passes."""
    half = torch.float16 in (y.dtype, *(x.dtype for x in inputs))
    scale = 1024 if half else 1  # or the gradients of a float16 model underflow
    try:
        with torch.inference_mode(False), torch.enable_grad():
            found = torch.autograd.grad(scale * y.sum(), inputs, **options)
    except RuntimeError as error:
        if "does not require grad" not in str(error) and "not have been used in the graph" not in str(error):
            raise
        raise ValueError(
            "The model passes no gradient from its logits to its attention: its layers are quantised, or something in "
            "it is detached. Use rollout or attention, or the model in floating point."
        ) from None
    return tuple(g.float() / scale if half else g.float() for g in found)
