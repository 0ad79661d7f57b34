"""What rounding to 8 bits costs: the maps of an exported graph against PyTorch's in float32, picture by picture.

Writes book/results/export.csv (a row a method: correlation, mean and 5th percentile over pictures; then the agreement
of the first classes and the time of a run on one core) and its provenance, export.json.
"""

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import torch
from tqdm import tqdm

from gmar_utils import explain_many, load_model, trace
from gmar_utils.data import tiny_imagenet
from gmar_utils.evaluation.provenance import made_by, weights_sha256
from gmar_utils.export import export
from gmar_utils.export.graph import OUTPUTS
from gmar_utils.methods.weighting import VARIANTS, gmar, head_weights, weighted_rollout

RESULTS = Path(__file__).parents[2] / "book" / "results"
GMAR = {f"gmar-{norm}-{variant}": {"norm": norm, "variant": variant} for norm in ("l1", "l2") for variant in VARIANTS}
METHODS = {name: name for name in ("rollout", "legrad", "grad-cam", "chefer", "attention")}
METHODS |= {label: partial(gmar, **options) for label, options in GMAR.items()}


def maps_of(found: dict[str, torch.Tensor], readout: torch.Tensor, prefix: int) -> dict[str, torch.Tensor]:
    """Every method's patch scores (R·C,) from the graph's outputs."""
    attention, gradient = found["attention"].split(1), found["gradient"].split(1)
    row = readout[None]
    for a, g in zip(reversed(attention), reversed(gradient), strict=True):
        row = row + row @ (a * g).relu().mean(1)[0]
    scores = {
        "rollout": weighted_rollout(attention, head_weights(attention, None), readout, 1.0, "output-first")[0],
        "legrad": found["legrad"].mean(0),
        "grad-cam": (found["activation"] @ found["activation_gradient"][prefix:].mean(0)).relu(),
        "chefer": row[0],
        "attention": readout @ attention[-1].mean(1)[0],
    }
    for label, options in GMAR.items():
        weights = head_weights(gradient, options["norm"])
        scores[label] = weighted_rollout(attention, weights, readout, 1.0, options["variant"])[0]
    return {label: values[prefix:] for label, values in scores.items()}


def compare(vit, path, photos):
    """Correlations {label: one a picture}, agreement of the first classes, and seconds a run."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    correlations, rows = {label: [] for label in METHODS}, []
    for photo in tqdm(photos, disable=None):
        pixels = vit.preprocess(photo)
        seen = trace(vit.model, pixels)
        expected = explain_many(vit.model, pixels, METHODS, seen.target, upsample=False)
        started = time.perf_counter()
        outputs = session.run(None, {"pixels": pixels.numpy(), "target": seen.target.numpy()})
        seconds = time.perf_counter() - started
        found = {name: torch.from_numpy(value) for name, value in zip(OUTPUTS, outputs, strict=True)}
        readout = seen.readout.reshape(-1, seen.readout.shape[-1])[0]
        for label, ours in maps_of(found, readout, seen.prefix_tokens).items():
            correlations[label].append(np.corrcoef(ours, expected[label].flatten())[0, 1])
        top, ours = seen.logits[0].topk(5), found["logits"][0].topk(5)
        rows.append(
            {
                "first_class": float(top.indices[0] == ours.indices[0]),
                "four_of_first_five": float(len(set(top.indices.tolist()) & set(ours.indices.tolist())) >= 4),
                # where another class came first: how near the two were in float32
                "gap_where_first_differs": float(top.values[0] - seen.logits[0, ours.indices[0]]) or np.nan,
                "ms_a_run": 1000 * seconds,
            }
        )
    return correlations, pd.DataFrame(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="vit-small-tiny-imagenet")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--bits", type=int, default=8)
    arguments = parser.parse_args()
    started, vit = time.time(), load_model(arguments.model, image_size=arguments.image_size, device="cpu")
    data = tiny_imagenet("valid")
    chosen = np.linspace(0, len(data) - 1, arguments.images).round().astype(int)
    with tempfile.TemporaryDirectory() as folder:
        path = export(vit, Path(folder) / "graph.onnx", arguments.image_size, arguments.bits)
        megabytes = path.stat().st_size / 1e6
        correlations, rows = compare(vit, path, (data[int(i)]["image"] for i in chosen))
    lines = [
        {
            "measure": label,
            "mean": np.nanmean(values),
            "5th_percentile": np.nanpercentile(values, 5),
            "least": np.nanmin(values),
            "pictures": int(np.isfinite(values).sum()),  # a constant map has no correlation
        }
        for label, values in correlations.items()
    ]
    for name, values in rows.items():
        lines.append({"measure": name, "mean": values.mean(), "least": values.min(), "pictures": values.count()})
    table = pd.DataFrame(lines)
    record = made_by(
        model=Path(arguments.model).name,
        weights_sha256=weights_sha256(vit),
        data="Tiny-ImageNet, validation",
        images=arguments.images,
        image_size=arguments.image_size,
        bits=arguments.bits,
        megabytes=round(megabytes, 2),
        onnxruntime=onnxruntime.__version__,
        seed=None,
        wall_time_s=round(time.time() - started),
    )
    table.to_csv(RESULTS / "export.csv", index=False, float_format="%.5g")
    (RESULTS / "export.json").write_text(json.dumps(record, indent=1) + "\n")
    print(table.round(4).to_string(index=False))
    print(f"{megabytes:.1f} MB")


if __name__ == "__main__":
    main()
