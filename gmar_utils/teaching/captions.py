"""Pictures and words: a small CLIP, trained on generated scenes and what can be said of them.

`python -m gmar_utils.teaching.captions` draws the scenes, trains on one processor core and writes the checkpoint.
"""

import argparse
import math
import time
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import torch
import torch.nn.functional as F
from datasets import Dataset
from tqdm import tqdm
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from gmar_utils import data, load_model
from gmar_utils.checkpoint import CHECKPOINTS
from gmar_utils.data import drawing
from gmar_utils.metrics.forwards import cheap_dtype
from gmar_utils.model import Vit

from .tokens import word_tokenizer

NAME = "words/clip-shapes"  # it has no classes, so it is none of those that load_model offers
NAMES = ("disc", "ring", "triangle", "bar", "cross", "star")  # of the eleven of `shapes`: thirty pairs can be learned
RELATIONS = ("left of", "above")  # along x, along y
SINGLES = [f"a {name}" for name in NAMES]
PAIRS = [(a, r, b) for a, b in permutations(range(len(NAMES)), 2) for r in range(2)]
SENTENCES = [f"a {NAMES[a]} {RELATIONS[r]} a {NAMES[b]}" for a, r, b in PAIRS]
CAPTIONS = [*SINGLES, *SENTENCES]
KINDS = {"objects": [*range(len(NAMES))]} | {
    relation: [len(NAMES) + k for k, pair in enumerate(PAIRS) if pair[1] == r] for r, relation in enumerate(RELATIONS)
}  # captions that rule each other out: {kind: their numbers}
NUMBER = {drawing.CLASSES.index(name): k for k, name in enumerate(NAMES)}  # class of `shapes` → place in NAMES
HELD_OUT, BATCH = 500, 64
CLOSE = 4  # pixels: two objects nearer to each other along an axis are not told apart by it


def scenes(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures of two objects, uint8 (n, 64, 64, 3); their classes (n, 2); from the second to the first, (n, 2): x and
    y in pixels, y downwards."""
    made = drawing.scenes(5 * n, 64, seed, objects=2)  # more than one in four has two of these names
    labels = torch.tensor([NUMBER.get(k, -1) for k in range(len(drawing.CLASSES))])[torch.tensor(made.labels)]
    keep = (labels >= 0).all(1).nonzero()[:n, 0]
    centres = torch.tensor(made.boxes[..., :2] + made.boxes[..., 2:])[keep] / 2
    return torch.tensor(made.images[keep.numpy()]), labels[keep], centres[:, 0] - centres[:, 1]


def pairs(n: int, seed: int):
    """Scenes of two of these objects, as `data.shape_pairs` gives them, with the classes numbered as in SINGLES."""
    found = data.shape_pairs(5 * n, seed=seed)
    ours = [k for k, groups in enumerate(found["groups"]) if all(group[0] in NUMBER for group in groups)]
    renamed = [r | {"groups": [[NUMBER[group[0]]] for group in r["groups"]]} for r in found.select(ours[:n])]
    return Dataset.from_list(renamed)


def truth(labels: torch.Tensor, apart: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which captions are true of each scene, and which are not clear, bool (n, captions) each."""
    alone = (labels[:, :, None] == torch.arange(len(NAMES))).any(1)
    a, r, b = torch.tensor(PAIRS).T
    first, second = labels[:, :1], labels[:, 1:]
    forwards, backwards = (first == a) & (second == b), (first == b) & (second == a)
    true = forwards & (apart[:, r] < 0) | backwards & (apart[:, r] > 0)
    close = (forwards | backwards) & (apart[:, r].abs() < CLOSE)
    return torch.cat([alone, true & ~close], 1), torch.cat([torch.zeros_like(alone), close], 1)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word of these captions."""
    words = sorted({w for text in CAPTIONS for w in text.split()})
    return word_tokenizer(["[PAD]", "[UNK]", "[BOS]", *words, "[EOS]"], "bos", "eos")


SAME = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "hidden_act",
)
RENAMED = {
    "encoder.layers": "layers",
    "self_attn.out_proj": "attention.o_proj",
    "self_attn": "attention",
    "layer_norm1": "layernorm_before",
    "layer_norm2": "layernorm_after",
    "post_layernorm": "layernorm",
}


def untrained(words: PreTrainedTokenizerFast, pixels: torch.Tensor) -> CLIPModel:
    """A CLIP whose image tower begins as `vit-shapes`, and whose small text tower is random.

    pixels: some pictures, which say how large the tokens are that enter the first block."""
    vit = load_model("vit-shapes", device="cpu").model
    special = {f"{k}_token_id": getattr(words, f"{k}_token_id") for k in ("pad", "bos", "eos")}
    text = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"max_position_embeddings": 16, "vocab_size": len(words)} | special
    vision = {k: getattr(vit.config, k) for k in SAME}
    clip = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=64))
    given, taken = vit.vit.state_dict(), {}
    for key in clip.vision_model.state_dict():
        old = key
        for new, name in RENAMED.items():
            old = old.replace(new, name)
        if old in given:
            taken[key] = given[old]
    places, patches = given["embeddings.position_embeddings"][0].clone(), "embeddings.patch_embeddings.projection"
    places[1:] += given[f"{patches}.bias"]  # CLIP's patch embedding has none
    taken["embeddings.class_embedding"] = given["embeddings.cls_token"][0, 0]
    taken["embeddings.patch_embedding.weight"] = given[f"{patches}.weight"]
    taken["embeddings.position_embedding.weight"] = places
    missing, unexpected = clip.vision_model.load_state_dict(taken, strict=False)
    assert not unexpected and all("pre_layrnorm" in k for k in missing), (missing, unexpected)
    with torch.no_grad():  # CLIP's norm in front of the blocks keeps the size that they know
        clip.vision_model.pre_layrnorm.weight.fill_(vit.vit.embeddings(pixels).std(-1).mean())
    return clip


def turned(pixels: torch.Tensor, apart: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each picture (B, 3, h, h) turned and mirrored by chance, and what that does to `apart`."""
    pixels, apart = pixels.clone(), apart.clone()
    for axis in (0, 1):
        flip = torch.rand(len(pixels)) < 0.5
        pixels[flip] = pixels[flip].flip(3 - axis)
        apart[flip, axis] *= -1
    swap = torch.rand(len(pixels)) < 0.5
    pixels[swap], apart[swap] = pixels[swap].transpose(2, 3), apart[swap].flip(1)
    return pixels, apart


def encoded(clip: CLIPModel, words, texts: list[str]) -> torch.Tensor:
    """Text embeddings of length 1."""
    return F.normalize(clip.get_text_features(**words(texts, padding=True, return_tensors="pt")).pooler_output, dim=-1)


def loss_of(clip: CLIPModel, words, pixels: torch.Tensor, labels: torch.Tensor, apart: torch.Tensor) -> torch.Tensor:
    """CLIP's loss, both ways, with every caption of a kind in the batch: names of objects, or how two lie on one axis.

    All true captions of a picture are right answers, each as likely; one that is not clear is no answer at all."""
    true, unclear = truth(labels, apart)
    images = F.normalize(clip.get_image_features(pixels).pooler_output, dim=-1)
    logits = clip.logit_scale.exp().clamp_max(100) * images @ encoded(clip, words, CAPTIONS).T
    logits, total = logits.float().masked_fill(unclear, -1e4), 0.0
    for kind in KINDS.values():
        for way in (0, 1):
            right, found = true[:, kind].float(), logits[:, kind].log_softmax(1 - way)
            answers = right.sum(1 - way, keepdim=True)
            total -= (right / answers.clamp_min(1) * found).sum() / (answers > 0).sum()
    return total / (2 * len(KINDS))


def matched(clip: CLIPModel, words, pixels: torch.Tensor, labels: torch.Tensor, apart: torch.Tensor) -> dict:
    """Percent of scenes whose two first single objects are theirs; for each relation, of those where it is clear, the
    ones whose first sentence is true."""
    true, unclear = truth(labels, apart)
    with torch.inference_mode():
        texts = encoded(clip, words, CAPTIONS)
        images = torch.cat([F.normalize(clip.get_image_features(p).pooler_output, dim=-1) for p in pixels.split(100)])
    found, shares = images @ texts.T, {}
    for kind, at in KINDS.items():
        clear = true[:, at].any(1) & ~unclear[:, at].any(1)
        first = found[clear][:, at].topk(2 if kind == "objects" else 1).indices
        shares[kind] = 100 * true[clear][:, at].gather(1, first).all(1).float().mean().item()
    return shares


def train(
    n: int = 8_000, steps: int = 2800, batch: int = BATCH, rate: float = 1.5e-3, seed: int = 0, minutes: float = 60
):
    """The trained CLIP, its tokenizer and what was measured on the way."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    vit, words, started = load_model("vit-shapes", device="cpu"), tokenizer(), time.process_time()
    images, labels, apart = scenes(n, seed)
    held_out = scenes(HELD_OUT, seed + 1)
    held_out = (vit.preprocess(list(held_out[0].numpy())), *held_out[1:])
    mean, std = (torch.tensor(getattr(vit.processor, k)).view(3, 1, 1) for k in ("image_mean", "image_std"))
    clip = untrained(words, held_out[0][:100])
    inner = [p for name, p in clip.named_parameters() if p.ndim == 2 and ".layers." in name]
    rest = [p for name, p in clip.named_parameters() if p.ndim != 2 or ".layers." not in name]
    optimisers = [
        torch.optim.Muon(inner, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    log, cheap = [], cheap_dtype("cpu")
    bar = tqdm(range(steps), disable=None)
    for step in bar:
        done = max(step / steps, (time.process_time() - started) / (60 * minutes))
        for group in optimisers[0].param_groups + optimisers[1].param_groups:
            group["lr"] = rate * min(1, (step + 1) / 50) * (1 + math.cos(math.pi * min(1, done))) / 2
        chosen = torch.randint(n, (batch,))
        pixels = (images[chosen].permute(0, 3, 1, 2) / 255 - mean) / std
        pixels, moved = turned(pixels, apart[chosen])
        clip.train()
        with torch.autocast("cpu", cheap, enabled=cheap == torch.bfloat16):
            loss = loss_of(clip, words, pixels, labels[chosen], moved)
        clip.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        if step % 100 == 99 or step == steps - 1 or done >= 1:
            found = matched(clip.eval(), words, *held_out)
            log.append({"step": step + 1, "loss": loss.item(), "seconds": time.process_time() - started, **found})
            print(log[-1], flush=True)
        if done >= 1:
            break
    return clip.eval(), words, vit.processor, log


def load() -> Vit:
    """The bundled model, in float32; `.asking(*SINGLES)` gives it the names as classes."""
    return replace(load_model(CHECKPOINTS / NAME), name=NAME)


def measured(vit: Vit, n: int = HELD_OUT, seed: int = 2) -> dict:
    """`matched` of the model on fresh scenes."""
    images, labels, apart = scenes(n, seed)
    pixels = vit.preprocess(list(images.numpy()))
    return {k: round(v, 1) for k, v in matched(vit.model.towers, vit.model.tokenizer, pixels, labels, apart).items()}


CARD = """---
license: other
pipeline_tag: zero-shot-image-classification
tags: [vision-transformer, clip, shapes]
---
# {name}

A CLIP of two small towers, half precision. Pictures: {size} px in patches of {patch} px, {layers} layers,
{heads} heads, width {width}. Texts: {words} words, {text_layers} layers, width {text_width}. It knows {singles} objects
and says of two of them which one is left of the other or above it.

On {held_out} held-out scenes of two objects:

- the first two of {singles} single objects are those in the picture: {objects:.1f} %
- the first of {sentences} sentences with *left of* is true: {left:.1f} %
- the first of {sentences} sentences with *above* is true: {above:.1f} %

Again: `python -m gmar_utils.teaching.captions`, {steps} steps of {batch} pictures, {minutes:.0f} minutes of one core.

The image tower began as `vit-shapes`, so the terms of that model apply: research and teaching only.
"""


def card(config: CLIPConfig, words: int, found: dict) -> str:
    """The README.md of the checkpoint; `found` as `train` logs it last."""
    image, text = config.vision_config, config.text_config
    return CARD.format(
        name=NAME,
        held_out=HELD_OUT,
        batch=BATCH,
        size=image.image_size,
        patch=image.patch_size,
        layers=image.num_hidden_layers,
        heads=image.num_attention_heads,
        width=image.hidden_size,
        words=words,
        text_layers=text.num_hidden_layers,
        text_width=text.hidden_size,
        singles=len(SINGLES),
        sentences=len(SENTENCES) // 2,
        steps=found["step"],
        minutes=found["seconds"] / 60,
        objects=found["objects"],
        left=found["left of"],
        above=found["above"],
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=CHECKPOINTS / NAME)
    parser.add_argument("--minutes", type=float, default=60)
    arguments = parser.parse_args()
    clip, words, processor, log = train(minutes=arguments.minutes)
    clip.half().save_pretrained(arguments.out)
    words.save_pretrained(arguments.out)
    processor.save_pretrained(arguments.out)
    (arguments.out / "README.md").write_text(card(clip.config, len(words), log[-1]), encoding="utf8")


if __name__ == "__main__":
    main()
