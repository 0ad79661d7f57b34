"""The two ends of a training: the model that it begins with, and the measured checkpoint that it leaves."""

import copy
import inspect
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from ..checkpoint import image_processor, located, pretrained
from ..data import drawing
from ..metrics.forwards import cheap_dtype
from ..model import Vit, load_model
from .augment import resized
from .card import model_card
from .recipe import Recipe, pictures
from .state import read


def starting_point(recipe: Recipe, words: Sequence[str]) -> tuple[nn.Module, ViTImageProcessorPil]:
    """The model that a recipe begins with, with a new head where it had another number of classes.

    Args:
        recipe: Its ``init``, ``layers``, ``seed`` and sizes decide.
        words: The classes' words.

    Returns:
        The model, and the processor of its checkpoint: a plain resize, as in training, normalised as it was trained.

    Raises:
        ValueError: more layers asked for than there are, or a checkpoint that is not whole.
        OSError: ``init`` is neither bundled, nor a folder, nor a hub id that answers.
    """
    named = {"id2label": dict(enumerate(words)), "label2id": {w: i for i, w in enumerate(words)}}
    torch.manual_seed(recipe.seed)
    if isinstance(recipe.init, dict):
        model = ViTForImageClassification(ViTConfig(**recipe.init, **named))
        return model, image_processor(None, model, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    if recipe.layers:
        count = getattr(AutoConfig.from_pretrained(located(recipe.init)), "num_hidden_layers", 0)
        if recipe.layers > count:
            raise ValueError(f"expected layers to be at most {count}, as {recipe.init!r} has, got {recipe.layers}.")
        named["num_hidden_layers"] = recipe.layers
    model = pretrained(recipe.init, new_head=True, **named)
    theirs = image_processor(located(recipe.init), model)
    cut_positions(model, max(recipe.sizes()))
    return model, image_processor(None, model, theirs.image_mean, theirs.image_std)


def cut_positions(model: nn.Module, px: int) -> None:
    """Cut the position table of a DINOv2 or ViT model, in place, to what pictures of ``px`` pixels need."""
    side, patch = model.config.image_size, model.config.patch_size
    known = model.config.model_type in ("vit", "dinov2", "dinov2_with_registers")
    if not known or not isinstance(side, int) or side <= px or px % patch:
        return
    embeddings = getattr(model, model.base_model_prefix).embeddings
    tokens = torch.zeros(1, 1 + (px // patch) ** 2, model.config.hidden_size)
    cut = embeddings.interpolate_pos_encoding(tokens, px, px)
    embeddings.position_embeddings = nn.Parameter(cut.detach().clone())
    model.config.image_size = px


def check_sizes(model: nn.Module, sizes: Iterable[int]) -> None:
    """Raise ValueError where a model's patches do not fill pictures of these sizes."""
    patch = getattr(getattr(model, "config", None), "patch_size", None)
    wrong = [px for px in sizes if isinstance(patch, int) and (px < patch or px % patch)]
    if wrong:
        near = max(patch, round(wrong[0] / patch) * patch)
        raise ValueError(f"expected sizes that patches of {patch} px fill, got {wrong[0]}; the nearest is {near}.")


def any_size(model: nn.Module) -> dict[str, bool]:
    """The argument that lets a model take pictures of any size, for those that need one."""
    forward = getattr(model, "module", model).forward
    return {k: True for k in ("interpolate_pos_encoding",) if k in inspect.signature(forward).parameters}


def normalized(images: torch.Tensor, processor: ViTImageProcessorPil) -> torch.Tensor:
    """Pixels of 0 to 255, (B, 3, H, W), as the processor's model reads them."""
    mean, std = (
        torch.tensor(v, device=images.device)[:, None, None] for v in (processor.image_mean, processor.image_std)
    )
    return (images - 255 * mean) / (255 * std)


@torch.inference_mode()
def accuracy(
    model: nn.Module, processor: ViTImageProcessorPil, images: torch.Tensor, labels: torch.Tensor, px: int
) -> dict[str, float]:
    """Top-1 and top-5 in percent, and the loss, of uint8 images (N, 3, H, W), plain resize to ``px``.

    In the type of `cheap_dtype`, as in training.
    """
    training, dtype, options = model.training, cheap_dtype(images.device), any_size(model)
    model.eval()
    total = torch.zeros(3)
    for some, part in zip(images.split(250), labels.split(250), strict=True):
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            logits = model(pixel_values=normalized(resized(some, px), processor), **options).logits.float()
        hit = logits.topk(min(5, logits.shape[1])).indices == part[:, None]
        total += torch.tensor([hit[:, 0].sum(), hit.sum(), F.cross_entropy(logits, part, reduction="sum")])
    model.train(training)
    top1, top5, loss = (total / len(images)).tolist()
    return {"top1": round(100 * top1, 2), "top5": round(100 * top5, 2), "loss": round(loss, 4)}


def measure(vit: Vit, source: str | None = None, sizes: Sequence[int] | None = None) -> dict[str, dict[str, float]]:
    """Accuracy on pictures that no training saw.

    Args:
        vit: A model of the classes of shapes, or of the 200 of Tiny-ImageNet.
        source: Where Tiny-ImageNet is, see `data.tiny_imagenet`.
        sizes: Sizes of the pictures in pixels; default: the model's own.

    Returns:
        {what was measured: top-1 and top-5 in percent, loss, number of images}.

    Raises:
        ValueError: a model of other classes, or sizes that its patches do not fill.
    """
    name, splits = "tiny-imagenet", {"Tiny-ImageNet, odd rows of the validation file": "test"}
    if vit.labels == list(drawing.CLASSES):
        name, splits = "shapes", {"fresh scenes": "test", "fresh scenes, up to 30 % of the object hidden": "hidden"}
    elif len(vit.labels) != 200:
        raise ValueError(
            f"expected the 200 classes of Tiny-ImageNet or those of shapes, {vit.name} has {len(vit.labels)}."
        )
    sizes = list(sizes or [vit.model.config.image_size])
    check_sizes(vit.model, sizes)
    found = {}
    for what, split in splits.items():
        images, labels = (v.to(vit.device) for v in pictures(name, split, source))
        for px in sizes:
            numbers = accuracy(vit.model, vit.processor, images, labels, px)
            found[f"{what}, {px} px"] = numbers | {"images": len(images)}
    return found


def save(
    model: nn.Module, processor: ViTImageProcessorPil, out: str | Path, recipe: Recipe, source: str | None = None
) -> dict[str, dict[str, float]]:
    """Write a checkpoint folder in Hugging Face format, in half precision, measure it, and write its card.

    It is put together beside its place: what cannot be finished leaves nothing.

    Args:
        model: Left as it is.
        processor: Its image processor.
        out: The folder; the state and the log of `train` are in its folder training, if they are there.
        recipe: What made the weights.
        source: Where Tiny-ImageNet is, for the measuring.

    Returns:
        The accuracies, as `measure` returns them: at the model's own size, and at the one trained at most.

    Raises:
        OSError: the folder could not be written.
    """
    out = Path(out)
    fresh = out / ".new"
    shutil.rmtree(fresh, ignore_errors=True)
    model = copy.deepcopy(model).half()
    try:
        model.save_pretrained(fresh)
        processor.save_pretrained(fresh)
        vit = load_model(fresh)
        found = measure(vit, source, sorted({vit.model.config.image_size, recipe.usual_size()}))
        history = read(out / "training" / "state.pt")
        model_card(out.name, vit.model.config, asdict(recipe), found, history).save(fresh / "README.md")
        for file in sorted(fresh.iterdir()):
            file.replace(out / file.name)
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise OSError(f"{out}: the checkpoint could not be written ({reason}). Make room and call again.") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return found
