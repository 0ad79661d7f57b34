"""A model of pictures and texts, CLIP or SigLIP, as a classifier whose classes are text prompts."""

import copy
from collections.abc import Sequence
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

TOWERS = {"CLIPModel", "MetaClip2Model", "SiglipModel"}


class ZeroShot(nn.Module):
    """Logits (B, K) of pictures for K prompts: scale · cos(picture, prompt), for SigLIP + bias, read by a sigmoid.

    Attributes:
        towers: the model; its image tower is what a trace sees.
        tokenizer: of its texts.
        prompts: K texts; `asking` gives the model with others.
    """

    def __init__(self, towers: nn.Module, tokenizer, prompts: Sequence[str] = ("",)):
        super().__init__()
        self.towers, self.tokenizer, self.bias = towers, tokenizer, getattr(towers, "logit_bias", 0.0)
        sigmoid = "multi_label_classification" if isinstance(self.bias, torch.Tensor) else None
        vision, kind = towers.config.vision_config, towers.config.model_type
        self.config = SimpleNamespace(vision_config=vision, model_type=kind, problem_type=sigmoid)
        self.prompts, self.texts = tuple(prompts), self.encoded(prompts)

    def encoded(self, prompts: Sequence[str]) -> torch.Tensor:
        """Text embeddings (K, D) of length 1. SigLIP knows texts that are filled up to one length."""
        most, device = self.towers.config.text_config.max_position_embeddings, self.towers.logit_scale.device
        padding = "max_length" if self.config.problem_type else True
        ids = self.tokenizer(list(prompts), padding=padding, truncation=True, max_length=most, return_tensors="pt")
        with torch.no_grad():
            return F.normalize(self.towers.get_text_features(**ids.to(device)).pooler_output, dim=-1)

    def asking(self, prompts: Sequence[str]) -> "ZeroShot":
        """The same model, weights shared, with other prompts."""
        twin = copy.copy(self)
        twin.prompts, twin.texts = tuple(prompts), self.encoded(prompts)
        return twin

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """(B, channels, height, width) → (B, K)."""
        seen = self.towers.get_image_features(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
        images = F.normalize(seen.pooler_output, dim=-1)
        return self.towers.logit_scale.exp() * (images @ self.texts.to(images).T) + self.bias
