"""A Vision Transformer small enough for pencil and paper: three tokens, two layers, two heads.

The picture has two pixels, each of them a patch: a cat on the left, a cup on the right. Its two channels say how much
cat and how much cup a pixel is. Head 1 carries the channel *cat*, head 2 the channel *cup*. The tokens are [CLS], cat
and cup, in this order. What each token attends to is fixed by its place, as `ATTENTION` lists it; nothing is normalised
and there is no MLP, so that every number below can be worked out by hand. Each head adds, to every token's channel, the
attended mean of that channel:

>>> from gmar_utils import trace
>>> from gmar_utils.methods.weighting import alpha_polynomial, head_weights, weighted_rollout
>>> model = ThreeTokenViT()
>>> seen = trace(model, PICTURE, target=CAT)
>>> round_(seen.logits)                               # 6.16 = 4.92 from the cat patch + 1.24 from the cup patch
[[6.16, 5.36]]

The gradient of the logit *cat* with respect to the attention of the last layer is zero but for the row of [CLS]:

>>> round_(seen.gradients[1][0, 0])                   # head 1: 3 × (0.6, 1.4, 0.4)
[[1.8, 4.2, 1.2], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
>>> round_(seen.gradients[1][0, 1])                   # head 2: 1 × (0.4, 0.2, 1.2)
[[0.4, 0.2, 1.2], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]

Head weights, layer by layer. L1: 6 : 2 and 7.2 : 1.8.

>>> [round_(w[0]) for w in head_weights(seen.gradients, "l1")]
[[0.75, 0.25], [0.8, 0.2]]
>>> [round_(w[0]) for w in head_weights(seen.gradients, "l2")]
[[0.75, 0.25], [0.7867, 0.2133]]

Rollout with α = 1 is the average over the four walks of two lazy steps; the order of the product changes the winner:

>>> same = head_weights(seen.gradients, None)
>>> round_(4 * weighted_rollout(seen.attentions, same, seen.readout, variant="output-first"))
[[1.72, 1.28, 1.0]]
>>> round_(4 * weighted_rollout(seen.attentions, same, seen.readout, variant="report"))
[[1.84, 1.06, 1.1]]

GMAR's recursion is a straight line in α, so that α can decide which patch wins; here the two tie at α = 0.375:

>>> weights = head_weights(seen.gradients, "l1")
>>> round_(alpha_polynomial(seen.attentions, weights, seen.readout))
[[[0.35, 0.28, 0.37], [1.2, 0.52, 0.28]]]
>>> round_(weighted_rollout(seen.attentions, weights, seen.readout, alpha=1.0))
[[1.55, 0.8, 0.65]]

The other maps, as ([CLS], cat, cup); the entry of [CLS] is never shown:

>>> from gmar_utils.methods.baselines import attention, chefer
>>> from gmar_utils.methods.activation import gradcam
>>> from gmar_utils.methods.layerwise import layer_maps, legrad
>>> round_(attention(seen)), round_(chefer(seen))
([[0.2, 0.4, 0.4]], [[1.22, 3.116, 0.8272]])
>>> round_(layer_maps(seen)), round_(legrad(seen))
([[[0.0, 0.5, 0.1667], [0.3667, 0.7333, 0.4]]], [[0.1833, 0.6167, 0.2833]])
>>> round_(gradcam(seen))
[[0.88, 1.76, 0.96]]

Attention apart, this model is linear, so LibraGrad at the input gives each patch what it adds to the logit, 4.92 and
1.24; so does hiding one patch after the other. AttnLRP gives a half to what passes through attention once and a quarter
to what passes twice, 1.8/2 + 1.8/2 + 1.32/4 for the cat; CDAM sees the last attention alone, 1.4 × 1.8 + 0.2 × 0.2:

>>> from gmar_utils.methods.activation import cdam
>>> from gmar_utils.methods.perturbation import occlusion
>>> from gmar_utils.methods.propagation import attnlrp, libra
>>> round_(libra(seen, layers="input")), round_(occlusion(seen, size=1))
([[0.0, 4.92, 1.24]], [[0.0, 4.92, 1.24]])
>>> round_(attnlrp(seen)), round_(cdam(seen))
([[0.0, 2.13, 0.56]], [[0.44, 2.56, 0.96]])
"""

import torch
import torch.nn.functional as F
from torch import nn

TOKENS = ("[CLS]", "cat", "cup")
CLASSES = ("cat", "cup")
CAT, CUP = 0, 1

#: ATTENTION[layer][head][query][key]; each row sums to 1.
ATTENTION = (
    (((0.2, 0.6, 0.2), (0.2, 0.4, 0.4), (0.2, 0.4, 0.4)), ((0.4, 0.2, 0.4), (0.2, 0.6, 0.2), (0.2, 0.6, 0.2))),
    (((0.2, 0.6, 0.2), (0.4, 0.2, 0.4), (0.4, 0.2, 0.4)), ((0.2, 0.2, 0.6), (0.4, 0.2, 0.4), (0.4, 0.2, 0.4))),
)

#: The logit of a class reads 3 times its own channel of [CLS] and once the other's.
HEAD = ((3.0, 1.0), (1.0, 3.0))

#: (1, channels, height, width): the left pixel is all cat, the right one all cup.
PICTURE = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])


class ThreeTokenViT(nn.Module):
    """Pixels (B, 2, 1, 2) → logits (B, 2). Laid out like a timm model, so that every map can be drawn for it.

    attention  [layer][head][query][key], positive, rows summing to 1: other values than `ATTENTION`, to try things
    """

    def __init__(self, attention=ATTENTION):
        super().__init__()
        self.patch_embed = nn.Conv2d(2, 2, kernel_size=1, stride=1, bias=False)
        self.patch_embed.weight.data = torch.eye(2)[:, :, None, None]
        self.blocks = nn.ModuleList(_Block(torch.tensor(layer)) for layer in attention)
        self.norm = nn.Identity()
        self.head = nn.Linear(2, 2, bias=False)
        self.head.weight.data = torch.tensor(HEAD)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embed(pixel_values).flatten(2).transpose(1, 2)
        tokens = torch.cat([torch.zeros_like(patches[:, :1]), patches], dim=1)  # [CLS] starts empty
        for block in self.blocks:
            tokens = block(tokens)
        return self.forward_head(self.norm(tokens))

    def forward_head(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(tokens[:, 0])


class _Block(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.norm1 = _NoNorm(2)
        # softmax(log A · I) = A: queries of place, keys of place
        self.register_buffer("query", attention.log())
        self.register_buffer("key", torch.eye(attention.shape[-1]))

    def forward(self, tokens):
        value = self.norm1(tokens).transpose(1, 2)[..., None]  # (B, heads, N, 1): head h carries channel h
        query, key = (t.expand(*value.shape[:2], -1, -1) for t in (self.query, self.key))
        return tokens + F.scaled_dot_product_attention(query, key, value, scale=1.0)[..., 0].transpose(1, 2)


class _NoNorm(nn.LayerNorm):
    """A LayerNorm in name only: Grad-CAM looks for one; by hand we prefer to leave the numbers alone."""

    def forward(self, input):
        return input.view_as(input)  # a tensor of its own, as a norm's output is: the residual goes round it


def round_(values: torch.Tensor) -> list:
    """Nested lists with at most four decimals, to read and to compare."""
    return [round_(v) if v.ndim else round(v.item() + 0.0, 4) for v in values]
