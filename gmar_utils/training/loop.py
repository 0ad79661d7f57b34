"""The training itself: one loop for one CPU, one GPU, several GPUs or machines.

Pictures are decoded once to uint8, live on the device, and are cropped, turned, flipped and mixed there. Every
random choice of a step comes from a generator seeded with (seed, step, process), so a run that is killed and started
again ends with the same weights. Hugging Face Accelerate does the rest: devices, processes, autocast, scaling.

    gmar finetune --recipe shapes --out vit-shapes
    accelerate launch --multi_gpu -m gmar_utils finetune --recipe tiny-imagenet --out vit-small
"""

import json
import math
import re
import time
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm
from transformers import ViTImageProcessorPil

from ..files import atomic
from ..metrics.forwards import cheap_dtype
from . import state as states
from .augment import mixed, random_views
from .checkpoint import accuracy, any_size, check_sizes, normalized
from .recipe import Recipe, pixels_at, schedule

LOG_EVERY, WATCH_EVERY = 50, 500  # steps
PRECISIONS = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "no"}  # as Accelerate names them


def optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """The recipe's optimizer, as a list: Muon takes the matrices inside the blocks and leaves the rest to AdamW.

    Every group carries ``factor``, its learning rate as a multiple of the recipe's: the last block and the final norm
    have 1, the block before it ``layer_decay``, the embeddings the next power after the first block's; what lies
    outside the backbone is the head and has ``head_rate``.
    """
    groups = {muon: defaultdict(list) for muon in (True, False)}
    for name, parameter in model.named_parameters():
        block = re.search(r"layers?\.(\d+)\.", name)
        depth = model.config.num_hidden_layers - 1 - int(block[1]) if block else 0
        depth = model.config.num_hidden_layers if "embeddings" in name else depth
        inside = name.startswith(f"{model.base_model_prefix}.")
        factor = recipe.layer_decay**depth if inside else recipe.head_rate
        decay = recipe.weight_decay if parameter.ndim > 1 else 0.0
        muon = recipe.optimizer == "muon" and parameter.ndim == 2 and block is not None
        groups[muon][factor, decay].append(parameter)
    matrices, rest = (
        [{"params": p, "weight_decay": decay, "factor": factor} for (factor, decay), p in groups[muon].items()]
        for muon in (True, False)
    )
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    found = [kind(rest, lr=recipe.learning_rate)]
    if matrices:
        found.append(torch.optim.Muon(matrices, lr=recipe.learning_rate, adjust_lr_fn="match_rms_adamw"))
    return found


def train(
    model: nn.Module,
    processor: ViTImageProcessorPil,
    images: torch.Tensor,
    labels: torch.Tensor,
    recipe: Recipe,
    out: str | Path,
    watch: tuple[torch.Tensor, torch.Tensor] | None = None,
    accumulate: int = 1,
    minutes: float = math.inf,
    save_every: float = 180.0,
) -> nn.Module | None:
    """Train ``model`` in place; called again with the same arguments it goes on from the last state in ``out``.

    Args:
        model: A transformers classifier, as `starting_point` returns it: a state goes on only from the same weights.
        processor: Its image processor: mean and standard deviation are used.
        images: uint8 (N, 3, H, W).
        labels: (N,).
        recipe: See `Recipe`.
        out: Folder of state.pt and log.jsonl.
        watch: (images, labels) whose accuracy is logged every 500 steps; nothing is chosen by it.
        accumulate: Parts that a batch is computed in, to save memory.
        minutes: Stop after the step in which they are over.
        save_every: Seconds between two states.

    Returns:
        The weights to keep (their average if the recipe has one); None when ``minutes`` ran out.

    Raises:
        ValueError: options that no training can follow (nothing is written then), a state of another training, a
            damaged state, another process in ``out``, a loss that is no number any more.
        OSError: the state could not be written.
    """
    check_sizes(model, recipe.sizes())
    cpu = not torch.cuda.is_available()
    engine = Accelerator(mixed_precision=PRECISIONS[cheap_dtype("cpu" if cpu else "cuda")], cpu=cpu)
    main, world, file = engine.is_main_process, engine.num_processes, Path(out) / "state.pt"
    if recipe.batch_size % (world * accumulate) or recipe.batch_size > len(images):
        raise ValueError(
            f"expected a batch size that {world} processes × {accumulate} parts divide and {len(images)} images fill, "
            f"got {recipe.batch_size}"
        )
    per_epoch = len(images) // recipe.batch_size
    total = round(recipe.epochs * per_epoch)
    if total < 1:
        raise ValueError(f"expected epochs for at least one step, got {recipe.epochs:g} of {per_epoch} steps each.")
    with states.claim(file.parent) if main else nullcontext():
        done = states.read(file)
        ours = states.settings(recipe, model, processor, images, labels, engine)
        if done:
            states.agree(file, done, recipe, ours, per_epoch)
        images, labels, *watch = (v.to(engine.device) for v in (images, labels, *(watch or ())))
        model, options = model.to(engine.device).train(), any_size(model)
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema)) if recipe.ema else None
        watched = average.module if average else model
        solvers = [engine.prepare_optimizer(o) for o in optimizers(model, recipe)]
        parts = {"model": model, "average": average, "scaler": engine.scaler, **dict(enumerate(solvers))}
        parts = {name: part for name, part in parts.items() if part is not None}
        if done:
            states.restore(file, done.pop("parts"), parts)  # what is put back need not stay in memory
        done = {"step": 0, "log": [], "running": [0.0, 0]} | (done or {}) | {"epochs": recipe.epochs, "settings": ours}
        first, rows, (right, seen) = done["step"], done["log"], done["running"]
        if cpu:
            model.set_attn_implementation("eager")  # in bfloat16 a step takes half the time of the fused attention's
        wrapped, rate, made = engine.prepare_model(model), schedule(recipe, total), first
        bar = tqdm(total=total, initial=first, unit="step", disable=not main, smoothing=0.02)
        began = saved = time.monotonic()
        for step in range(first, total):
            px = pixels_at(recipe, step, total)
            pixels, targets, mixing = _batch(images, labels, recipe, step, px, processor, model.num_labels, engine)
            for group in (group for solver in solvers for group in solver.param_groups):
                group["lr"] = recipe.learning_rate * rate(step) * group["factor"]
            loss, hits = _update(engine, wrapped, options, solvers, pixels, targets, recipe, accumulate)
            if not mixing:
                right, seen = right + hits, seen + len(pixels)
            if average:
                average.update_parameters(model)
            made, now = step + 1, time.monotonic()
            bar.update()
            if main and (made % LOG_EVERY == 0 or made == total):
                speed = round((made - first) * recipe.batch_size / (now - began), 1)
                row = {"step": made, "px": px, "loss": round(_finite(loss, made), 4), "images_per_s": speed}
                row["running_top1"] = round(100 * float(right) / max(seen, 1), 2)
                bar.set_postfix_str(f"{px} px, {speed:.0f} images/s, loss {row['loss']}, top-1 {row['running_top1']}")
                right, seen = 0.0, 0
                if watch and (made % WATCH_EVERY == 0 or made == total):
                    size = recipe.usual_size()
                    row["watch"] = {"px": size} | accuracy(watched, processor, *watch, size)
                rows.append(row)
                with atomic(file.with_name("log.jsonl")) as log:
                    log.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            if main and now - began > 60 * minutes:  # the first process's clock decides for all
                engine.set_trigger()
            stop = engine.check_trigger()
            if main and (now - saved > save_every or made == total or stop):
                _finite(loss, made)
                whole = {name: part.state_dict() for name, part in parts.items()}
                states.write(file, done | {"step": made, "running": [float(right), seen], "parts": whole})
                saved = now
            if stop:
                break
        engine.wait_for_everyone()  # whoever calls again reads the state that the first process wrote last
    return watched if made == total else None


def _batch(images, labels, recipe, step, px, processor, classes, engine):
    """This process's share of a step: pixels (b, 3, px, px), targets (b, K), and whether pictures were mixed."""
    rank, world = engine.process_index, engine.num_processes
    epoch, k = divmod(step, len(images) // recipe.batch_size)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(recipe.seed + 7919 * epoch))
    batch = order[k * recipe.batch_size : (k + 1) * recipe.batch_size][rank::world].to(images.device)
    generator = torch.Generator().manual_seed((recipe.seed * 1_000_003 + step) * 1009 + rank)
    pixels = normalized(random_views(images[batch], generator, px, recipe.crop, recipe.turn), processor)
    targets = F.one_hot(labels[batch], classes).float()
    mixing = torch.rand((), generator=generator).item() < recipe.mix
    if mixing:
        pixels, targets = mixed(pixels, targets, generator)
    return pixels, targets, mixing


def _update(engine, model, options, solvers, pixels, targets, recipe, accumulate):
    """One step of the optimizers on a batch computed in parts; the last part's loss and the number of right answers."""
    hits = 0
    for x, t in zip(pixels.chunk(accumulate), targets.chunk(accumulate), strict=True):
        with engine.autocast():
            logits = model(pixel_values=x, **options).logits
        loss = F.cross_entropy(logits.float(), t, label_smoothing=recipe.label_smoothing)
        engine.backward(loss / accumulate)
        hits = hits + (logits.argmax(1) == t.argmax(1)).sum()
    engine.clip_grad_norm_(model.parameters(), recipe.clip)
    for solver in solvers:
        solver.step()
        solver.zero_grad()
    return loss, hits


def _finite(loss, step):
    value = loss.item()
    if not math.isfinite(value):
        raise ValueError(
            f"The loss is {value} at step {step}: the training diverged, and no state was written since. Give a lower "
            "--learning-rate and another --out."
        )
    return value
