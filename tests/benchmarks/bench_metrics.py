"""What a faithfulness score costs: insertion + deletion against plain forwards, Quantus and a loop as RISE writes it.

Every contestant runs in float32; plain forwards, ours and Quantus again in the precision that `evaluate` chooses here,
the peers under autocast to the same: nobody is crippled. Every repetition times all contestants one after
the other, and each ratio is taken within its repetition, so a machine that is busy or slows down moves all sides.
`--clock cpu` counts processor time in place of wall time, for a machine that is shared. Writes
book/results/bench_metrics.csv and its provenance.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import Dinov2Config, Dinov2ForImageClassification

from gmar_utils.evaluation.provenance import made_by
from gmar_utils.metrics import deletion, insertion
from gmar_utils.metrics.forwards import cheap_dtype

RESULTS = Path(__file__).parents[2] / "book" / "results"
STEPS = 32
VIT_S = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "patch_size": 14}
SIZES = {  # model: (pixels, images, images per forward)
    "ViT-S/14 at 112 px (65 tokens, 12 layers × 6 heads)": (112, 2, 64),
    "ViT-S/14 at 224 px (257 tokens, 12 layers × 6 heads)": (224, 1, 16),
}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Logits(torch.nn.Module):
    """The peers want a module that returns a tensor. Counts the images that pass."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, 0

    def forward(self, x):
        self.seen += len(x)
        return self.model(x).logits.float()


def rise(model, image, pixel_map, target):
    """Deletion as RISE's evaluation.py goes about it: one image, one forward a step, pixels changed in NumPy."""
    pixels = image.shape[-2] * image.shape[-1]
    step = pixels // STEPS
    order = np.flip(np.argsort(pixel_map.reshape(pixels).numpy()))
    current, scores = image.clone(), []
    with torch.no_grad():
        for i in range(STEPS + 1):
            scores.append(float(model(current[None]).logits.float().softmax(1)[0, target]))
            flat = current.numpy().reshape(3, pixels)
            flat[:, order[step * i : step * (i + 1)]] = 0
    return (sum(scores) - scores[0] / 2 - scores[-1] / 2) / STEPS


def contestants(size, images, batch):
    """Name → (function, forward passes of single images); the first is what every ratio is taken against."""
    torch.manual_seed(0)
    config = Dinov2Config(num_labels=200, image_size=size, **VIT_S)
    model = Dinov2ForImageClassification(config).eval().requires_grad_(False)
    grid = size // config.patch_size
    x, maps = torch.randn(images, 3, size, size), torch.rand(images, grid, grid)
    pixel_maps = torch.rand(images, size, size)
    target = model(x).logits.argmax(1)
    forwards = images * (STEPS + 1)
    full_batch = torch.randn(batch, 3, size, size)

    @torch.inference_mode()
    def plain():
        for start in range(0, 2 * forwards, batch):
            model(full_batch[: 2 * forwards - start])

    def ours(precision="float32"):
        for curve in (insertion, deletion):
            curve(model, x, maps, target, steps=STEPS, batch_size=batch, precision=precision)

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
    functions |= quantus_flipping(Logits(model).eval(), x, pixel_maps, target, batch, size)
    if cheap_dtype("cpu") != torch.float32:
        peers = {k: v for k, v in functions.items() if k.startswith(("plain", "Quantus"))}
        functions["insertion + deletion, auto"] = (lambda: ours("auto"), 2 * forwards)
        functions |= {f"{name}, auto": (_autocast(function), count) for name, (function, count) in peers.items()}
    return functions


def _autocast(function):
    def run():
        with torch.autocast("cpu", cheap_dtype("cpu")):
            function()

    return run


def quantus_flipping(counted, x, pixel_maps, target, batch, size):
    """Quantus' PixelFlipping on the same images; {} where Quantus is not installed."""
    try:
        import quantus
    except ImportError as error:
        print(f"Quantus left out: {error}")
        return {}
    # It takes each value of each channel for a feature and wants a divisor of the pixels.
    wanted = 3 * size * size // STEPS
    step = min((k for k in range(1, 2 * wanted) if size * size % k == 0), key=lambda k: abs(k - wanted))
    flipping = quantus.PixelFlipping(
        features_in_step=step, perturb_baseline="black", disable_warnings=True, return_auc_per_sample=False
    )
    arrays = x.numpy(), target.numpy(), pixel_maps[:, None].numpy()

    def run():
        flipping(
            model=counted,
            x_batch=arrays[0],
            y_batch=arrays[1],
            a_batch=arrays[2],
            channel_first=True,
            batch_size=batch,
            device="cpu",
            softmax=True,
        )

    run()  # counts its forwards
    return {f"Quantus {quantus.__version__} PixelFlipping": (run, counted.seen)}


def measure(size, repetitions, clock):
    functions = contestants(*SIZES[size])
    times = {name: [] for name in functions}
    for repetition in range(repetitions + 1):
        for name, (function, _) in functions.items():
            start = clock()
            function()
            if repetition:  # one round to warm up
                times[name].append(clock() - start)
    plain, plain_forwards = times["plain forward"], functions["plain forward"][1]
    rows = []
    for name, (_, forwards) in functions.items():
        ratios = [(forwards / s) / (plain_forwards / p) for s, p in zip(times[name], plain, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        _, images, batch = SIZES[size]
        rows.append(
            {
                "model": size,
                "batch": batch,
                "images": images,
                "steps": STEPS,
                "contestant": name,
                "precision": str(cheap_dtype("cpu") if name.endswith(", auto") else torch.float32)[6:],
                "forwards": forwards,
                "throughput_ratio": middle,
                "ratio_q1": low,
                "ratio_q3": high,
                "forwards_per_second": forwards / statistics.median(times[name]),
                "ms_per_image": 1000 * statistics.median(times[name]) / images,
            }
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--sizes", type=int, nargs="+", default=[112, 224], help="pixels")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    start, rows = time.perf_counter(), []
    for size in SIZES:
        if SIZES[size][0] in args.sizes:
            small = SIZES[size][0] == 112
            rows += measure(size, args.repetitions if small else max(2, args.repetitions // 2), CLOCKS[args.clock])
            print(pd.DataFrame(rows).iloc[:, 4:].round(3).to_string(index=False), flush=True)
    record = made_by(
        wall_time_s=round(time.perf_counter() - start),
        repetitions=args.repetitions,
        clock=args.clock,
        threads=torch.get_num_threads(),
        models="random weights",
        data="random images",
        seed=0,
    )
    args.out.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(args.out / "bench_metrics.csv", index=False, float_format="%.4g")
    (args.out / "bench_metrics.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
