"""What a map costs: time as ratios measured in one run, and memory against batch size.

Every repetition times all contestants one after the other, and each ratio is taken within its repetition, so a machine
that is busy or slows down moves both sides. Writes book/results/bench_maps.csv, bench_memory.csv and their provenance.
"""

import argparse
import contextlib
import copy
import importlib.util
import json
import statistics
import subprocess
import sys
import time
import types
from pathlib import Path

import pandas as pd
import torch
from transformers import ViTConfig, ViTForImageClassification

from gmar_utils import explain, trace
from gmar_utils.evaluation.provenance import made_by
from gmar_utils.methods.weighting import gmar

LEFT_OUT = {}  # peers that are not installed here, and why: it goes into the provenance
NOTES = {}


@contextlib.contextmanager
def grad_cam_without_torchvision():
    """pytorch-grad-cam imports torchvision for helpers that read image files and boxes, and its Grad-CAM never calls.

    The package index has torchvision for torch 2.13 built for CUDA only (beside a CPU build it stops with "operator
    torchvision::nms does not exist"): where it is missing, empty names stand in for it during the import. What is timed
    is pytorch-grad-cam's own code.
    """
    if importlib.util.find_spec("torchvision"):
        yield
        return
    names = ("torchvision", "torchvision.transforms")
    parts = {name: types.ModuleType(name) for name in names}
    parts[names[1]].Compose = parts[names[1]].Normalize = parts[names[1]].ToTensor = None
    sys.modules |= parts
    NOTES["pytorch-grad-cam"] = "an empty stand-in for torchvision, which it imports and this run never calls"
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


try:
    with grad_cam_without_torchvision():
        from pytorch_grad_cam import GradCAM
except ImportError as error:
    LEFT_OUT["pytorch-grad-cam"] = str(error)
try:
    from captum.attr import LayerGradCam
except ImportError as error:
    LEFT_OUT["captum"] = str(error)

RESULTS = Path(__file__).parents[2] / "book" / "results"
SIZES = {
    "ViT-S/14 (112 px, 65 tokens, 12 layers × 6 heads)": dict(
        image_size=112,
        patch_size=14,
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        intermediate_size=1536,
    ),
    "ViT-S/16 (224 px, 197 tokens, 12 layers × 6 heads)": dict(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536
    ),
    "ViT-B/16 (224 px, 197 tokens, 12 layers × 12 heads)": {},
}
BASELINE = "eager forward + activations-only backward"


def vit(size):
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(num_labels=200, **SIZES[size])).eval().requires_grad_(False)


def contestants(model, x):
    """Name → function; the first is what every ratio is taken against."""
    eager = ViTForImageClassification(copy.deepcopy(model.config)).eval().requires_grad_(False)
    eager.load_state_dict(model.state_dict())
    eager.set_attn_implementation("eager")

    def baseline():
        out = eager(x.detach().requires_grad_(), output_attentions=True)
        score = out.logits.max(1).values.sum()
        torch.autograd.grad(score, out.attentions)

    def peer_gradcam():
        cam(input_tensor=x.detach().requires_grad_(), targets=None)

    def captum_gradcam():
        target = eager(x).logits.argmax(1)
        layer_gradcam.attribute(x.detach().requires_grad_(), target=target, attr_dim_summation=True)

    seen = trace(model, x)
    functions = {
        BASELINE: baseline,
        "gmar": lambda: explain(model, x, "gmar", upsample=False),
        "legrad": lambda: explain(model, x, "legrad", upsample=False),
        "rollout": lambda: explain(model, x, "rollout", upsample=False),
        "chefer": lambda: explain(model, x, "chefer", upsample=False),
        "grad-cam": lambda: explain(model, x, "grad-cam", upsample=False),
        "head weights + rollout alone": lambda: gmar(seen),
    }
    rows, columns = seen.grid

    def to_picture(tokens):
        return tokens[:, 1:].reshape(len(tokens), rows, columns, -1).permute(0, 3, 1, 2)

    if "pytorch-grad-cam" not in LEFT_OUT:
        cam = GradCAM(
            model=Logits(eager), target_layers=[eager.vit.layers[-1].layernorm_before], reshape_transform=to_picture
        )
        functions["grad-cam of pytorch-grad-cam"] = peer_gradcam
    if "captum" not in LEFT_OUT:
        layer_gradcam = LayerGradCam(Logits(eager), eager.vit.layers[-1].layernorm_before)
        functions["grad-cam of captum"] = captum_gradcam
    return functions


class Logits(torch.nn.Module):
    """The peers want a module that returns a tensor."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).logits


def measure(size, batch, repetitions):
    model = vit(size)
    functions = contestants(model, torch.randn(batch, 3, model.config.image_size, model.config.image_size))
    times = {name: [] for name in functions}
    for repetition in range(repetitions + 2):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if repetition >= 2:  # two rounds to warm up
                times[name].append(time.perf_counter() - start)
    rows = []
    for name, seconds in times.items():
        ratios = [s / b for s, b in zip(seconds, times[BASELINE], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
        rows.append(
            {
                "model": size,
                "batch": batch,
                "contestant": name,
                "ratio": statistics.median(ratios),
                "ratio_q1": low,
                "ratio_q3": high,
                "repetitions": repetitions,
                "ms_per_image": 1000 * statistics.median(seconds) / batch,
            }
        )
    return rows


def peak_memory(batch):
    """Megabytes above the loaded model, of one GMAR call in a fresh process."""
    code = f"from tests.benchmarks.bench_maps import grow; grow({batch})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(run.stdout)


def grow(batch):
    small = vit(list(SIZES)[0])
    side = small.config.image_size
    explain(small, torch.randn(1, 3, side, side), "gmar")  # libraries' own buffers
    model = vit(list(SIZES)[1])
    x = torch.randn(batch, 3, 224, 224)
    before = memory("VmRSS")
    explain(model, x, "gmar", upsample=False, batch_size=batch)
    print(memory("VmHWM") - before)


def memory(field):
    """Megabytes of this process, resident now (VmRSS) or at most (VmHWM; ru_maxrss is a child's parent's on Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=15)
    repetitions = parser.parse_args().repetitions
    start = time.time()
    plan = [(size, batch) for size in SIZES for batch in (1, 8) if (batch == 1 or "ViT-B" not in size)]
    rows = []
    for size, batch in plan:
        if "112 px" in size:  # milliseconds a call: many, because one hiccup of the machine is as long as a call
            count = 10 * repetitions
        else:
            count = repetitions if batch == 1 else max(3, repetitions // 3)
        rows += measure(size, batch, count)
        print(pd.DataFrame(rows[-9:]).round(3).to_string(index=False), flush=True)
    peaks = [{"batch": b, "megabytes": peak_memory(b)} for b in (1, 2, 4, 8, 16)]
    for row in peaks:
        row["megabytes_per_image"] = row["megabytes"] / row["batch"]
    record = made_by(
        seed=0, wall_time_s=round(time.time() - start), threads=torch.get_num_threads(), left_out=LEFT_OUT, notes=NOTES
    )
    RESULTS.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(RESULTS / "bench_maps.csv", index=False, float_format="%.4g")
    pd.DataFrame(peaks).to_csv(RESULTS / "bench_memory.csv", index=False, float_format="%.4g")
    (RESULTS / "bench_maps.json").write_text(json.dumps(record, indent=1) + "\n")
    print(pd.DataFrame(peaks).round(1).to_string(index=False))


if __name__ == "__main__":
    main()
