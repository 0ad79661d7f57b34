"""What a faithfulness score costs: insertion + deletion against plain forwards, Quantus and a loop as RISE writes it.

Every repetition times all contestants one after the other, and each ratio is taken within its repetition, so a machine
that is busy or slows down moves both sides. Writes book/results/bench_metrics.csv and its provenance.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import ViTConfig, ViTForImageClassification

from gmar_utils.evaluation.provenance import provenance
from gmar_utils.metrics import deletion, insertion

RESULTS = Path(__file__).parents[2] / "book" / "results"
STEPS = 32
SIZES = {  # model, (images, images per forward)
    "bundled (64 px, 65 tokens, 6 layers × 6 heads)": (
        dict(image_size=64, patch_size=8, hidden_size=192, num_hidden_layers=6, num_attention_heads=6,
             intermediate_size=768), (4, 64)),
    "ViT-S/16 (224 px, 197 tokens, 12 layers × 6 heads)": (
        dict(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536), (1, 16)),
}  # fmt: skip


class Logits(torch.nn.Module):
    """The peers want a module that returns a tensor. Counts the images that pass."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, 0

    def forward(self, x):
        self.seen += len(x)
        return self.model(x).logits


def rise(model, image, pixel_map, target):
    """Deletion as RISE's evaluation.py goes about it: one image, one forward a step, pixels changed in NumPy."""
    pixels = image.shape[-2] * image.shape[-1]
    step = pixels // STEPS
    order = np.flip(np.argsort(pixel_map.reshape(pixels).numpy()))
    current, scores = image.clone(), []
    with torch.no_grad():
        for i in range(STEPS + 1):
            scores.append(float(model(current[None]).logits.softmax(1)[0, target]))
            flat = current.numpy().reshape(3, pixels)
            flat[:, order[step * i : step * (i + 1)]] = 0
    return (sum(scores) - scores[0] / 2 - scores[-1] / 2) / STEPS


def contestants(options, images, batch):
    """Name → (function, forward passes of single images); the first is what every ratio is taken against."""
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(num_labels=200, **options)).eval().requires_grad_(False)
    size = model.config.image_size
    grid = size // model.config.patch_size
    x, maps = torch.randn(images, 3, size, size), torch.rand(images, grid, grid)
    pixel_maps = torch.rand(images, size, size)
    target = model(x).logits.argmax(1)
    forwards = images * (STEPS + 1)
    full_batch = torch.randn(batch, 3, size, size)

    @torch.inference_mode()
    def plain():
        for start in range(0, 2 * forwards, batch):
            model(full_batch[: 2 * forwards - start])

    def ours():
        for curve in (insertion, deletion):
            curve(model, x, maps, target, steps=STEPS, batch_size=batch)

    def ours_by_pixel():
        deletion(model, x, pixel_maps, target, steps=STEPS, unit="pixel", batch_size=batch)

    def rise_loop():
        for k in range(images):
            rise(model, x[k], pixel_maps[k], target[k])

    ours_first = deletion(model, x[:1], pixel_maps[:1], target[:1], steps=STEPS, unit="pixel").auc.item()
    assert abs(ours_first - rise(model, x[0], pixel_maps[0], target[0])) < 5e-4, "the loop measures something else"
    functions = {
        "plain forward": (plain, 2 * forwards),
        "insertion + deletion": (ours, 2 * forwards),
        "deletion by pixel": (ours_by_pixel, forwards),
        "deletion, loop as in RISE": (rise_loop, forwards),
    }
    try:
        import quantus
    except ImportError as error:
        print(f"Quantus left out: {error}")
        return functions
    counted = Logits(model).eval()
    # It takes each value of each channel for a feature and wants a divisor of the pixels: 24 steps come nearest to 32.
    flipping = quantus.PixelFlipping(
        features_in_step=4 * size * size // STEPS,
        perturb_baseline="black",
        disable_warnings=True,
        return_auc_per_sample=False,
    )
    arrays = x.numpy(), target.numpy(), pixel_maps[:, None].numpy()

    def pixel_flipping():
        flipping(model=counted, x_batch=arrays[0], y_batch=arrays[1], a_batch=arrays[2], channel_first=True,
                 batch_size=batch, device="cpu", softmax=True)  # fmt: skip

    pixel_flipping()  # counts its forwards
    functions[f"Quantus {quantus.__version__} PixelFlipping"] = (pixel_flipping, counted.seen)
    return functions


def measure(size, repetitions):
    options, (images, batch) = SIZES[size]
    functions = contestants(options, images, batch)
    times = {name: [] for name in functions}
    for repetition in range(repetitions + 1):
        for name, (function, _) in functions.items():
            start = time.perf_counter()
            function()
            if repetition:  # one round to warm up
                times[name].append(time.perf_counter() - start)
    plain, plain_forwards = times["plain forward"], functions["plain forward"][1]
    rows = []
    for name, (_, forwards) in functions.items():
        ratios = [(forwards / s) / (plain_forwards / p) for s, p in zip(times[name], plain, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        rows.append(
            {"model": size, "batch": batch, "images": images, "steps": STEPS, "contestant": name, "forwards": forwards,
             "throughput_ratio": middle, "ratio_q1": low, "ratio_q3": high,
             "forwards_per_second": forwards / statistics.median(times[name]),
             "ms_per_image": 1000 * statistics.median(times[name]) / images}
        )  # fmt: skip
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    repetitions = parser.parse_args().repetitions
    start, rows = time.perf_counter(), []
    for size in SIZES:
        rows += measure(size, repetitions if "64 px" in size else max(2, repetitions // 2))
        print(pd.DataFrame(rows).iloc[:, 4:].round(3).to_string(index=False), flush=True)
    record = provenance(
        wall_time_s=round(time.perf_counter() - start), repetitions=repetitions, threads=torch.get_num_threads(),
        models="random weights", data="random images", seed=0,
    )  # fmt: skip
    RESULTS.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(RESULTS / "bench_metrics.csv", index=False, float_format="%.4g")
    (RESULTS / "bench_metrics.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
