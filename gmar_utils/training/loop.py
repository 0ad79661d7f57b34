"""Train or fine-tune an image classifier of the hub: one command for one CPU, one GPU, several GPUs or machines.

Pictures are decoded once to uint8, live on the device, and are cropped, turned, flipped and mixed there. Every
random choice of a step comes from a generator seeded with (seed, step, process), so a run that is killed and started
again ends with the same weights. Hugging Face Accelerate does the rest: devices, processes, autocast, scaling.

    gmar finetune --recipe shapes --out vit-shapes
    accelerate launch --multi_gpu -m gmar_utils finetune --recipe scratch --out vit-tiny
"""

from __future__ import annotations

import copy
import json
import math
import os
import re
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator, PartialState
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from .. import checkpoint, data
from .. import model as models
from ..data import drawing as shapes
from .augment import mixed, random_views, resized


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, apart from the data. It is written to the model card."""

    data: str  # tiny-imagenet | shapes
    init: dict | str  # a bundled name, folder or hub id to start from, or the ViTConfig entries of a new model
    stages: tuple[tuple[float, int | tuple[int, ...]], ...]  # (share of the steps, pixels, or sizes that take turns)
    epochs: float
    batch_size: int = 128
    optimizer: str = "adamw"  # adam | adamw | muon (for the matrices inside the blocks; AdamW for the rest)
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.05  # of matrices
    layer_decay: float = 1.0  # the learning rate falls by this factor from block to block, towards the input
    head_rate: float = 1.0  # the head's learning rate, as a multiple of the last block's
    warmup: float = 0.05  # share of the steps; 1 or more: so many steps
    schedule: str = "cosine"  # constant | cosine | trapezoid (constant, then to 0 over the last part of the steps)
    decay: float = 0.3  # that last part, as a share of the steps
    clip: float | None = 1.0  # largest norm of the gradient
    crop: float = 0.35  # smallest area of a random crop
    turn: bool = False  # by a multiple of 90 degrees
    mix: float = 0.0  # share of the batches with mixup or cutmix, half of them each
    label_smoothing: float = 0.0
    ema: float | None = None  # decay of the average of the weights, which is what is kept
    layers: int | None = None  # how many of the first layers of `init` to keep
    scenes: int = 0  # generated shapes, one in five with up to 30 % of the object hidden
    seed: int = 0


RECIPES = {
    # The paper's, section 4: Adam, 5e-5, batch 32, 100 epochs, crop and flip at 224. No schedule, decay or clipping is
    # stated.
    "paper": Recipe(
        data="tiny-imagenet", init="google/vit-large-patch16-224", stages=((1.0, 224),), epochs=100, batch_size=32,
        optimizer="adam", learning_rate=5e-5, weight_decay=0.0, warmup=0.0, schedule="constant", clip=None,
    ),
    "scratch": Recipe(
        data="tiny-imagenet",
        init={"image_size": 64, "patch_size": 8, "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6,
              "num_attention_heads": 6},
        stages=((0.25, 32), (0.35, 48), (0.35, 64), (0.05, 112)), epochs=300, label_smoothing=0.1, mix=0.5, ema=0.999,
    ),
    # From a pretrained ViT of patches of 14 px. Constant rate, so that a copy of the state can be annealed at any
    # time: give the copy `--epochs` that make what is done the first 80 %.
    "tiny-imagenet": Recipe(
        data="tiny-imagenet", init="facebook/dinov2-small", epochs=30, batch_size=64, learning_rate=1.2e-4,
        stages=((1.0, (112, 112, 98, 112, 112, 140, 112, 112, 98, 112, 112, 224)),), layer_decay=0.8,
        head_rate=8.0, warmup=150, schedule="trapezoid", decay=0.2, crop=0.4, label_smoothing=0.1, ema=0.995,
    ),
    # From random weights a ViT stays at chance here for thousands of steps; three trained layers know edges already.
    "shapes": Recipe(
        data="shapes", init="vit-tiny-imagenet", layers=3, stages=((1.0, 64),), epochs=14, optimizer="muon",
        learning_rate=1.2e-3, schedule="trapezoid", crop=1.0, turn=True, ema=0.995, scenes=30_000,
    ),
}  # fmt: skip


# --- Training


def pixels_at(recipe, step, total):
    """The resolution of a step: the stages follow each other by their shares."""
    px = recipe.stages[-1][1]
    for i, (_, size) in enumerate(recipe.stages):
        if step < sum(share for share, _ in recipe.stages[: i + 1]) * total:
            px = size
            break
    return px if isinstance(px, int) else px[step % len(px)]


def rate_at(recipe, step, total):
    """The learning rate of a step as a share of the recipe's."""
    warm = recipe.warmup if recipe.warmup >= 1 else recipe.warmup * total
    if step < warm:
        return (step + 1) / (warm + 1)
    if recipe.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))
    return min(1.0, (total - step) / (recipe.decay * total)) if recipe.schedule == "trapezoid" else 1.0


def optimizers(model, recipe):
    """The recipe's optimizer, as a list: Muon takes the matrices inside the blocks and leaves the rest to AdamW."""
    parameters = list(model.parameters())
    if recipe.optimizer == "adam":
        return [torch.optim.Adam(parameters, lr=recipe.learning_rate, betas=recipe.betas, eps=recipe.eps)]
    if recipe.optimizer not in ("adamw", "muon"):
        raise ValueError(f"expected optimizer adam, adamw or muon, got {recipe.optimizer!r}")
    linear = [
        m.weight for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features != model.num_labels
    ]
    inner = linear if recipe.optimizer == "muon" else []
    rest = [p for p in parameters if all(p is not q for q in inner)]
    groups = {}
    for parameter, factor in rate_factors(model, recipe):
        if any(parameter is p for p in rest):
            key = (factor, recipe.weight_decay if parameter.ndim > 1 else 0.0)
            groups.setdefault(key, []).append(parameter)
    groups = [{"params": p, "weight_decay": decay, "factor": factor} for (factor, decay), p in groups.items()]
    found = [torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, eps=recipe.eps)]
    if inner:
        options = {"weight_decay": recipe.weight_decay, "adjust_lr_fn": "match_rms_adamw"}
        found.append(torch.optim.Muon(inner, lr=recipe.learning_rate, **options))
    return found


def rate_factors(model, recipe):
    """(parameter, its learning rate as a multiple of the recipe's): falling from block to block towards the input."""
    count = getattr(model.config, "num_hidden_layers", 0)
    for name, parameter in model.named_parameters():
        block = re.search(r"layers?\.(\d+)\.", name)
        depth = count if "embeddings" in name else count - 1 - int(block[1]) if block else 0
        head = parameter.shape[:1] == (model.num_labels,)
        yield parameter, recipe.head_rate if head else recipe.layer_decay**depth


@torch.inference_mode()
def accuracy(model, images, labels, px, normalize, batch=250):
    """Top-1 and top-5 in percent of uint8 images (N, 3, H, W), plain resize, and the loss."""
    training = model.training
    model.eval()
    total = torch.zeros(3)
    for i in range(0, len(images), batch):
        part = labels[i : i + batch]
        logits = model(pixel_values=normalize(resized(images[i : i + batch], px)), interpolate_pos_encoding=True).logits
        hit = logits.float().topk(min(5, logits.shape[1])).indices == part[:, None]
        total += torch.tensor([hit[:, 0].sum(), hit.sum(), F.cross_entropy(logits.float(), part, reduction="sum")])
    model.train(training)
    top1, top5, loss = (total / len(images)).tolist()
    return {"top1": round(100 * top1, 2), "top5": round(100 * top5, 2), "loss": round(loss, 4)}


def train(model, processor, images, labels, recipe, out, watch=None, accumulate=1, minutes=math.inf, save_every=180):
    """Train ``model`` in place and return the weights to keep (their average if the recipe has one), or None when
    ``minutes`` ran out; called again with the same ``out`` it goes on from there.

    images   uint8 (N, 3, H, W)
    labels   (N,), or (N, 2): pictures of two things, half the target each
    watch    (images, labels) whose accuracy is logged now and then; nothing is chosen by it here
    out      folder of state.pt (written every ``save_every`` seconds) and log.jsonl
    accumulate  parts that a batch is computed in, to save memory
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    engine = Accelerator(mixed_precision=_precision(), cpu=not torch.cuda.is_available())
    rank, world, device = engine.process_index, engine.num_processes, engine.device
    if recipe.batch_size % (world * accumulate) or recipe.batch_size > len(images):
        raise ValueError(
            f"expected a batch size that {world} processes × {accumulate} parts divide and {len(images)} images fill, "
            f"got {recipe.batch_size}"
        )
    images, labels = images.to(device), (labels if labels.ndim == 2 else labels[:, None]).to(device)
    normalize = _normalizer(processor, device)
    model = model.to(device).train()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema)) if recipe.ema else None
    solvers = [engine.prepare_optimizer(o) for o in optimizers(model, recipe)]
    steps = len(images) // recipe.batch_size
    total = round(recipe.epochs * steps)
    parts = {"model": model, "average": average, "scaler": engine.scaler, **dict(enumerate(solvers))}
    step = _load(out / "state.pt", parts, recipe, device)
    if device.type == "cpu":
        model.set_attn_implementation("eager")  # in bfloat16 a step takes half the time of the fused attention's
    wrapped = engine.prepare_model(model)
    log = open(out / "log.jsonl", "a") if rank == 0 else None
    bar = tqdm(total=total, initial=step, unit="step", disable=rank > 0, smoothing=0.02)
    began = saved = time.monotonic()
    first, right, seen = step, 0.0, 0
    while step < total:
        epoch, k = divmod(step, steps)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(recipe.seed + 7919 * epoch))
        batch = order[k * recipe.batch_size : (k + 1) * recipe.batch_size][rank::world].to(device)
        generator = torch.Generator().manual_seed((recipe.seed * 1_000_003 + step) * 1009 + rank)
        px = pixels_at(recipe, step, total)
        pixels = normalize(random_views(images[batch], generator, px, recipe.crop, recipe.turn))
        targets = F.one_hot(labels[batch], model.num_labels).float().mean(1)
        mixing = torch.rand((), generator=generator).item() < recipe.mix
        if mixing:
            pixels, targets = mixed(pixels, targets, generator)
        for solver in solvers:
            for group in solver.param_groups:
                group["lr"] = recipe.learning_rate * rate_at(recipe, step, total) * group.get("factor", 1.0)
        for i, (x, t) in enumerate(zip(pixels.chunk(accumulate), targets.chunk(accumulate), strict=True)):
            with engine.no_sync(wrapped) if i < accumulate - 1 else nullcontext():
                with engine.autocast():
                    logits = wrapped(pixel_values=x, interpolate_pos_encoding=True).logits
                loss = F.cross_entropy(logits.float(), t, label_smoothing=recipe.label_smoothing)
                engine.backward(loss / accumulate)
            if not mixing:
                right, seen = right + (logits.argmax(1) == t.argmax(1)).sum(), seen + len(x)
        if recipe.clip:
            for solver in solvers:
                engine.unscale_gradients(solver)
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        for solver in solvers:
            solver.step()
            solver.zero_grad()
        if average:
            average.update_parameters(model)
        step += 1
        bar.update()
        now = time.monotonic()
        stop = _agreed(now - began > 60 * minutes, engine)
        if rank == 0 and (step % 50 == 0 or step == total or stop):
            running = round(100 * float(right) / max(seen, 1), 2)
            row = {"step": step, "px": px, "loss": round(loss.item(), 4), "running_top1": running}
            row["images_per_s"] = round((step - first) * recipe.batch_size / (now - began), 1)
            bar.set_postfix_str(f"{px} px, {row['images_per_s']:.0f} images/s, loss {row['loss']}, top-1 {running}")
            right, seen = 0.0, 0
            if watch and (step % 500 == 0 or step == total):
                with engine.autocast():
                    watched = average.module if average else model
                    row["watch"] = accuracy(watched, *(v.to(device) for v in watch), px, normalize)
            log.write(json.dumps(row) + "\n")
            log.flush()
        if rank == 0 and (now - saved > save_every or step == total or stop):
            _save(out / "state.pt", parts, recipe, step)
            saved = now
        if stop and step < total:
            return None
    return average.module if average else model


def _precision():
    """bf16 where the hardware multiplies it, fp16 on other GPUs. A T4 says it supports bf16 but only emulates it."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if torch.cpu.get_capabilities().get("avx512_bf16") else "no"


def _normalizer(processor, device):
    mean, std = (
        torch.tensor(v, device=device).view(1, 3, 1, 1) * 255 for v in (processor.image_mean, processor.image_std)
    )
    return lambda images: (images - mean) / std


def _agreed(stop, engine):
    """All processes stop after the same step: the first one's clock decides."""
    if engine.num_processes == 1:
        return stop
    answer = torch.tensor(float(stop), device=engine.device)
    torch.distributed.broadcast(answer, 0)
    return bool(answer)


def _save(file, parts, recipe, step):
    """Written beside and renamed, so that a kill in the middle leaves the previous state."""
    state = {k: v.state_dict() for k, v in parts.items() if v is not None}
    torch.save({"step": step, "recipe": asdict(recipe), "parts": state}, file.with_suffix(".new"))
    os.replace(file.with_suffix(".new"), file)


def _load(file, parts, recipe, device):
    """Put a saved state back and return its step; 0 if there is none."""
    if not file.exists():
        return 0
    state = torch.load(file, map_location="cpu")  # Accelerate's "cpu:0" is no place that load knows
    ours = asdict(recipe)
    changed = [k for k in ours if k != "epochs" and state["recipe"].get(k) != ours[k]]
    if changed:
        raise ValueError(
            f"{file} is of another recipe ({', '.join(changed)} differ). Give another --out, or delete it."
        )
    for name, part in parts.items():
        if part is not None:
            part.load_state_dict(state["parts"][name])
    return state["step"]


# --- Data, model, checkpoint


def pictures(name, split, source=None, recipe=None):
    """uint8 images (N, 3, H, W) and labels (N,) of a recipe's data. ``split``: train, watch (looked at in training) or
    test: of tiny-imagenet some even and the odd rows of the validation file, of shapes other seeds. Of shapes also
    hidden: up to 30 % of the object."""
    if name == "shapes":
        splits = {"watch": [(1000, 99, 0.0)], "test": [(1000, 2000, 0.0)], "hidden": [(1000, 2001, 0.3)]}
        if split == "train":
            splits["train"] = [(recipe.scenes * 4 // 5, recipe.seed, 0.0), (recipe.scenes // 5, recipe.seed + 1, 0.3)]
        made = [shapes.scenes(n, 64, seed, occlusion=hidden) for n, seed, hidden in splits[split]]
        images, labels = (np.concatenate([getattr(m, k) for m in made]) for k in ("images", "labels"))
        return torch.from_numpy(images).movedim(-1, 1).contiguous(), torch.from_numpy(labels[:, 0])
    images, labels = data.tiny_imagenet_arrays("train" if split == "train" else "valid", source)
    part = {"train": slice(None), "watch": slice(0, None, 10), "test": slice(1, None, 2)}[split]
    return images[part], labels[part]


def starting_point(recipe, words):
    """(model, processor) that a recipe begins with, and a new head where the model had another number of classes."""
    named = {"id2label": dict(enumerate(words)), "label2id": {w: i for i, w in enumerate(words)}}
    torch.manual_seed(recipe.seed)
    if isinstance(recipe.init, dict):
        size = {"height": recipe.init["image_size"], "width": recipe.init["image_size"]}
        processor = ViTImageProcessorPil(size=size, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
        return ViTForImageClassification(ViTConfig(**recipe.init, **named)), processor
    if recipe.layers:
        named["num_hidden_layers"] = recipe.layers
    model = checkpoint.pretrained(recipe.init, new_head=True, **named)
    _cut_positions(model, recipe)
    return model, checkpoint.image_processor(checkpoint.located(recipe.init), model)


def _cut_positions(model, recipe):
    """The position table of a DINOv2 model, cut to what the largest training size needs."""
    px = max(size for _, sizes in recipe.stages for size in ((sizes,) if isinstance(sizes, int) else sizes))
    if model.config.model_type != "dinov2" or model.config.image_size <= px:
        return
    embeddings, patch = model.dinov2.embeddings, model.config.patch_size
    cut = embeddings.interpolate_pos_encoding(torch.zeros(1, 1 + (px // patch) ** 2, model.config.hidden_size), px, px)
    embeddings.position_embeddings = torch.nn.Parameter(cut.detach().clone())
    model.config.image_size = px


def measure(vit, source=None):
    """{what was measured: top-1 and top-5 in percent, loss, number of images} on pictures that no training saw."""
    name, splits = "tiny-imagenet", {"Tiny-ImageNet, odd rows of the validation file": "test"}
    if vit.labels == list(shapes.CLASSES):
        name, splits = "shapes", {"fresh scenes": "test", "fresh scenes, up to 30 % of the object hidden": "hidden"}
    px, normalize, found = vit.model.config.image_size, _normalizer(vit.processor, vit.device), {}
    for what, split in splits.items():
        images, labels = (v.to(vit.device) for v in pictures(name, split, source))
        found[what] = accuracy(vit.model, images, labels, px, normalize) | {"images": len(images)}
    return found


def save(model, processor, words, out, recipe, source=None, story="", run=None):
    """Write a checkpoint folder in Hugging Face format, in half precision, measure it, and put all that is known of it
    on the model card. Returns the accuracies.

    story   what the recipe does not say, in a sentence: an earlier training that this one goes on from, say
    run     the folder of ``train``'s log.jsonl
    """
    out = Path(out)
    model = copy.deepcopy(model).half()
    model.config.id2label, model.config.label2id = dict(enumerate(words)), {w: i for i, w in enumerate(words)}
    model.save_pretrained(out)
    processor.save_pretrained(out)
    from .card import model_card  # it brings scipy and pandas, which training does without

    vit = models.load_model(out)
    found = measure(vit, source)
    log = [json.loads(line) for line in Path(run, "log.jsonl").read_text().splitlines()] if run else []
    (out / "README.md").write_text(model_card(out.name, vit.model.config, asdict(recipe), found, log, story))
    return found


# --- Command line


def add_arguments(parser):
    """The options of `gmar finetune`."""
    parser.epilog = "Several GPUs: accelerate launch --multi_gpu --num_processes N -m gmar_utils finetune …"
    parser.add_argument("--recipe", choices=RECIPES, default="shapes", help="what to train (default: %(default)s)")
    parser.add_argument("--init", help="start from this bundled model, folder or hub id, instead of the recipe's")
    parser.add_argument("--layers", type=int, help="keep only so many of its first layers")
    parser.add_argument("--source", help="Tiny-ImageNet: folder, zip or hub id (default: GMAR_TINY_IMAGENET, or hub)")
    parser.add_argument("--out", type=Path, help="folder of the checkpoint; its training/ holds the state, from which "
                        "the same command goes on after a kill (default: the recipe's name)")  # fmt: skip
    parser.add_argument("--epochs", type=float, help="instead of the recipe's")
    parser.add_argument("--batch-size", type=int, help="of all processes together, instead of the recipe's")
    parser.add_argument("--learning-rate", type=float, help="instead of the recipe's")
    parser.add_argument("--scenes", type=int, help="how many shapes to generate, instead of the recipe's")
    parser.add_argument("--accumulate", type=int, default=1, help="parts a batch is computed in, to save memory")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so long; call again to go on")
    parser.add_argument("--seed", type=int, help="instead of the recipe's (0)")
    parser.add_argument("--measure", metavar="MODEL", help="train nothing; print the accuracy of a bundled model, "
                        "folder or hub id on pictures that no training saw")  # fmt: skip


def main(args) -> int:
    """`gmar finetune`."""
    if args.measure:
        for what, numbers in measure(models.load_model(args.measure), args.source).items():
            print(f"{args.measure}: {what}:", ", ".join(f"{k} {v}" for k, v in numbers.items()))
        return 0
    recipe, out = RECIPES[args.recipe], args.out or Path(args.recipe)
    given = {k: getattr(args, k) for k in ("init", "epochs", "batch_size", "learning_rate", "scenes", "seed")}
    recipe = replace(recipe, **{k: v for k, v in given.items() if v is not None})
    if args.init or args.layers:
        recipe = replace(recipe, layers=args.layers)
    words = list(shapes.CLASSES) if recipe.data == "shapes" else data.words()
    model, processor = starting_point(recipe, words)
    train_on = pictures(recipe.data, "train", args.source, recipe)
    watch = pictures(recipe.data, "watch", args.source)
    kept = train(
        model, processor, *train_on, recipe, out / "training", watch, accumulate=args.accumulate, minutes=args.minutes
    )
    state = PartialState()
    if state.is_main_process and kept is None:
        print(f"Stopped after {args.minutes:g} minutes. The same command goes on from there.")
    elif state.is_main_process:
        for what, numbers in save(kept, processor, words, out, recipe, args.source, run=out / "training").items():
            print(f"{out}: {what}:", ", ".join(f"{k} {v}" for k, v in numbers.items()))
    state.destroy_process_group()
    return 0
