"""The readings of GMAR that the audit compares; they are no part of the library. Letters as in the notation page.

`reading` is the slow N × N form with a switch for every choice that the paper's text leaves open. `released` re-creates
the behaviour of the authors' public code from a description; none of that code is used here, since it has no licence.
"""

from functools import partial

import torch

from gmar_utils.methods.weighting import head_weights


def reading(trace, norm="l1", alpha=1.0, recursion="eq3", order="input-first", heads="fused", scope="layer"):
    """Rollout scores (B, N) under one reading of the paper.

    recursion  "eq3": R ← R Â + αI (Eq. 3) | "product": R ← R (Â + αI) (Eq. 1)
    order      "input-first": first layer leftmost, as printed | "output-first": as Abnar and Zuidema
    heads      "fused": Â = Σ_h w_h A_h | "chains": one product for each head, averaged at the end (Algorithm 1)
    scope      "layer": weights for each layer | "network": one vector, the norms summed over the layers (Algorithm 1)
    """
    weights = head_weights(trace.gradients, norm)
    if scope == "network" and norm is not None:
        sizes = sum(torch.linalg.vector_norm(g, ord=int(norm[1]), dim=(-2, -1)) for g in trace.gradients)
        weights = [sizes / sizes.sum(1, keepdim=True)] * len(weights)
    steps = [a * w[:, :, None, None] for a, w in zip(trace.attentions, weights, strict=True)]
    if heads == "fused":
        steps = [s.sum(1, keepdim=True) for s in steps]
    identity = torch.eye(steps[0].shape[-1], device=steps[0].device)
    matrix = identity
    for step in steps if order == "input-first" else reversed(steps):
        matrix = matrix @ step + alpha * identity if recursion == "eq3" else matrix @ (step + alpha * identity)
    return (trace.readout[:, None, None] @ matrix)[:, :, 0].mean(1)


def released(trace, norm="l1", readout="shipped"):
    """The scores (B, N) that the authors' public code computes, for a model with one [CLS] token.

    Head weights: the norm of the gradient at the output of the last block's first LayerNorm, patch tokens only, its
    channels cut into H equal chunks; one vector for all layers. One chain for each head, input-first, with
    α = 0.25 times 5e-5 times the mean of R. `readout` says what becomes of the chains (B, H, N, N):
      "shipped"    head 0, its [CLS] row dropped; the other (N−1)·N values cut into N maps of R·C values, which no
                   longer begin where a row begins; their mean
      "head 0"     the [CLS] row of head 0
      "all heads"  the [CLS] row, mean over heads
    """
    weights = layernorm_weights(trace, norm)
    return chains_readout(released_chains(trace.attentions, weights), readout, trace.prefix_tokens)


def layernorm_weights(trace, norm="l1"):
    """Head weights (B, H) from the gradient at the last block's first LayerNorm, channels in H chunks; None: 1/H."""
    batch, heads = trace.attentions[0].shape[:2]
    if norm is None:
        return torch.full((batch, heads), 1 / heads, device=trace.pixel_values.device)
    _, gradient = trace.activation
    chunks = gradient[:, 1:].unflatten(2, (heads, -1))
    sizes = torch.linalg.vector_norm(chunks, ord=int(norm[1]), dim=(1, 3))
    return sizes / sizes.sum(1, keepdim=True)


def released_chains(attentions, weights, residual=0.25 * 5e-5):
    """One chain for each head (B, H, N, N): R ← R (w_h A_h), then `residual` · mean(R) · I, the mean over the image."""
    identity = torch.eye(attentions[0].shape[-1], device=attentions[0].device)
    chains = identity.expand_as(attentions[0])
    for attention in attentions:
        chains = chains @ (attention * weights[:, :, None, None])
        chains = chains + residual * chains.mean((1, 2, 3), keepdim=True) * identity
    return chains


def chains_readout(chains, readout, prefix_tokens=1):
    """Token scores (B, N) from chains (B, H, N, N); see `released`. The [CLS] entry of "shipped" is 0: it has none."""
    if prefix_tokens != 1:
        raise ValueError(f"The released code reads models with one prefix token, this one has {prefix_tokens}.")
    if readout == "head 0":
        return chains[:, 0, 0]
    if readout == "all heads":
        return chains[:, :, 0].mean(1)
    n = chains.shape[-1]
    maps = chains[:, 0, 1:].reshape(len(chains), n, n - 1).mean(1)
    return torch.cat([torch.zeros_like(maps[:, :1]), maps], 1)


READINGS = {
    "paper": reading,
    "product": partial(reading, recursion="product"),
    "output-first": partial(reading, order="output-first"),
    "product, output-first": partial(reading, recursion="product", order="output-first"),
    "one chain a head": partial(reading, heads="chains"),
    "one weight vector": partial(reading, scope="network"),
    "literal": partial(reading, heads="chains", scope="network"),
    "released, all heads": partial(released, readout="all heads"),
    "released, head 0": partial(released, readout="head 0"),
    "released": released,
}
SOURCES = {
    "paper": "Eq. 3; weights for each layer. The library's variant `paper`",
    "product": "Eq. 1, and the report. The library's variant `report`",
    "output-first": "Eq. 3 in the order of Abnar and Zuidema",
    "product, output-first": "Abnar and Zuidema with head weights. The library's variant `output-first`",
    "one chain a head": "Algorithm 1 never adds the heads up",
    "one weight vector": "Algorithm 1 computes w once, before its loop",
    "literal": "Algorithm 1 to the letter: both of these",
    "released, all heads": "the public code's chains and weights; [CLS] row, mean over heads",
    "released, head 0": "the same chains; [CLS] row of head 0",
    "released": "the public code: head 0 without its [CLS] row, cut into maps",
}
