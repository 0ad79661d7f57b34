"""Calls of the command line with bad inputs, drawn at random: photos, options and checkpoints.

Each function makes one: what is tried, whether it has no meaning (so that it must be refused), and the call, which
returns what it came to and what was said.
"""

import contextlib
import io
import json
import math
import shutil
import traceback
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gmar_utils.checkpoint import CHECKPOINTS
from gmar_utils.cli.main import main

MODEL = "vit-shapes"
NUMBERS = (
    "nan",
    "inf",
    "-inf",
    "-1",
    "1e999",
    "1e308",
    "",
    "zwei",
    "0x10",
    "1,5",
    "1_0",
    "٣",
    "None",
    "--",
    "[1]",
    "1e-400",
)


def command(*words, good=0):
    """A call of the command line; `good` photos among the arguments must be explained whatever the others are."""

    def call():
        out, err = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code
        except Exception:
            return "traceback", traceback.format_exc()
        said = err.getvalue()
        lines = [line for line in said.splitlines() if not line.startswith("gmar: warning: ")]
        maps = [np.load(path) for path in Path(".").rglob("*.npy")]
        if not all(_sound(values) for values in maps):
            return "NaN map", said
        if code == 0:
            return "answered", said
        if "Traceback" in said or "GMAR_DEBUG=1" in said:
            return "traceback", said
        worded = lines and all(line.startswith("gmar") and len(line) > 25 for line in lines)
        if code != 2 or not worded:
            return f"exit code {code}, {len(lines)} lines", said
        return ("refused", said) if len(maps) >= good else ("good photos lost", said)

    return call


def _sound(values):
    """A map on a photo: NaN only where the model did not look, in [0, 1] elsewhere."""
    seen = values[np.isfinite(values)]
    return seen.size > 0.2 * values.size and not np.isinf(values).any() and 0 <= seen.min() <= seen.max() <= 1


def picture(generator, size=None):
    width, height = size or (generator.randint(20, 90), generator.randint(20, 90))
    pixels = np.random.default_rng(generator.randrange(2**32)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def explain(*words, good=0):
    return command("explain", *words, "--model", MODEL, "--out", "maps", good=good)


def broken_photos(generator, folder):
    """A file that is no picture, or no longer one, between good ones."""
    suffix = generator.choice(("png", "jpg", "gif", "tif", "webp", "bmp"))
    good, bad = (
        folder / "good.png",
        folder / generator.choice((f"bad.{suffix}", f"línea\nzwei.{suffix}", f"-.{suffix}")),
    )
    picture(generator).save(good)
    name = {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix)
    file = io.BytesIO()
    picture(generator).save(file, name)
    content = bytearray(file.getvalue())
    how = generator.choice(("cut", "cut", "flipped", "flipped", "noise", "empty", "text", "missing", "folder"))
    if how == "cut":
        content = content[: generator.randrange(1, len(content) - 1)]
    elif how == "flipped":
        for _ in range(generator.randint(1, 40)):
            content[generator.randrange(len(content))] = generator.randrange(256)
    elif how == "noise":
        content = generator.randbytes(generator.randint(1, 3000))
    else:
        content = {"text": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}.get(how, b"")
    if how == "folder":
        bad.mkdir()
    elif how != "missing":
        bad.write_bytes(content)
    meaningless = how in ("noise", "empty", "text", "missing", "folder")
    return f"{suffix}, {how}", meaningless, explain(good, f"./{bad.name}", good=1)


def odd_photos(generator, folder):
    """Pictures that are whole, and of a kind that nobody thinks of."""
    mode = generator.choice(
        ("1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16", "NaN", "bomb")
    )
    size = generator.choice(((1, 1), (1, 4000), (3000, 2), (2, 2), (64, 64), (500, 31)))
    path, meaningless = folder / "odd.tif", False
    if mode in ("NaN", "F"):
        values = np.random.default_rng(0).normal(size=size[::-1]).astype(np.float32)
        if mode == "NaN":
            values.flat[generator.randrange(values.size)] = generator.choice((math.nan, math.inf))
            meaningless = True
        Image.fromarray(values).save(path)
    elif mode in ("I", "I;16"):
        values = np.random.default_rng(0).integers(0, 60000, size[::-1])
        Image.fromarray(values.astype(np.int32 if mode == "I" else np.uint16)).save(path)
    elif mode == "bomb":
        path, size, meaningless = folder / "odd.png", (generator.randint(14000, 30000), 14000), True
        Image.new("1", size).save(path)
    elif mode == "HSV":
        path = folder / "odd.gif"
        frames = [picture(generator, size) for _ in range(2)]
        frames[0].save(path, save_all=True, append_images=frames[1:])
    else:
        picture(generator, size).convert(mode).save(path)
    return f"{mode} {size[0]} × {size[1]}", meaningless, explain(path)


def explain_options(generator, folder):
    """An option of `gmar explain` with a value that it cannot have."""
    picture(generator).save("photo.png")
    value, big = generator.choice(NUMBERS), str(generator.randint(10**3, 10**12))
    letters = "".join(
        chr(generator.choice((generator.randint(33, 126), generator.randint(160, 0x2FFF)))) for _ in range(5)
    )
    words, meaningless = generator.choice(
        [
            (("--alpha", generator.choice(("nan", "inf", "-1", "-1e-3", "1e308", "", "zwei", "1,5"))), True),
            (("--norm", letters), True),
            (("--variant", letters), True),
            (("--method", letters), True),
            (("--method", "legrad", "--alpha", "2"), True),
            ((f"--target={generator.choice((big, '-' + big, letters, 'nan', '1.5', '', ' ', '--', '1e3'))}",), True),
            (
                (f"--image-size={generator.choice((value, letters, '0', '7', '64x', '1x1x1', '64.0', big))}",),
                True,
            ),
            ((f"--image-size={generator.randint(1, 130)}x{generator.randint(1, 130)}",), False),
            (("--window", value, generator.choice(NUMBERS)), True),
            (("--window", "5", str(generator.randint(-9, 5))), True),
            (("--window=1",), True),
            (("--model", generator.choice(("", letters, "photo.png", ".", "/", "a/b/c", "../x"))), True),
            (("--out", generator.choice(("", " ", "photo.png", "photo.png/maps"))), True),
            ((f"--{generator.choice(('colour', 'metod', 'n', letters))}", value), True),
            (("",), True),
        ]
    )
    model = () if "--model" in words else ("--model", MODEL)
    out = () if "--out" in words else ("--out", "maps")
    return " ".join(words), meaningless, command("explain", "photo.png", *model, *out, *words)


def other_commands(generator, folder):
    """`gmar evaluate`, `finetune`, `trust`, `export`, `info` with an option that cannot be."""
    value = generator.choice(NUMBERS)
    zero = generator.choice(("0", "-1", "1.5", "nan", "", "zwei", "1e3", str(-generator.randint(2, 10**9))))
    evaluate = ("evaluate", "--data", "shapes", "--model", MODEL, "--limit", "2", "--out", "run")
    finetune = (
        "finetune",
        "--recipe",
        "shapes",
        "--scenes",
        "16",
        "--epochs",
        "1",
        "--batch-size",
        "8",
        "--out",
        "vit",
    )
    words = generator.choice(
        [
            (
                *evaluate,
                "--methods",
                generator.choice(("gmr", "gmar:", "gmar:alpha", "gmar:alfa=1", "gmar:norm=l3", "")),
            ),
            (*evaluate, "--methods", f"gmar:alpha={generator.choice(('nan', 'inf', '-1', 'zwei', '[1]', '1e308'))}"),
            (*evaluate, "--metrics", generator.choice(("IoU", "", "insertion,deletion", "43"))),
            (*evaluate, "--protocol", f"steps={generator.choice(('0', '-1', 'nan', '2.5', 'zwei', '[]', '1e9', ''))}"),
            (*evaluate, "--protocol", f"threshold={generator.choice(('nan', 'inf', 'zwei', '[]', 'None'))}"),
            (
                *evaluate,
                "--protocol",
                generator.choice(("steps", "baseline=grey", "score=loss", "unit=mm", "x=1", "=1")),
            ),
            (*evaluate, generator.choice(("--limit", "--block", "--batch-size")), zero),
            (*evaluate, "--image-size", generator.choice(("0", "7", "1x", "nan", "-3", value))),
            (*evaluate, "--seed", generator.choice(("1.5", "nan", "zwei", ""))),
            ("evaluate", "--data", "voc2012", "--source", "nowhere", "--model", MODEL, "--out", "run"),
            ("evaluate", "--data", "tiny-imagenet", "--source", "nowhere.zip", "--model", MODEL, "--out", "run"),
            (*finetune, "--epochs", generator.choice(("nan", "inf", "-1", "0", "zwei", "", "-0.5"))),
            (*finetune, generator.choice(("--layers", "--scenes", "--batch-size", "--accumulate")), zero),
            (*finetune, "--layers", str(generator.randint(13, 999))),
            (*finetune, "--learning-rate", generator.choice(("nan", "inf", "-1", "0", "zwei", ""))),
            (*finetune, generator.choice(("--minutes", "--save-every")), generator.choice(("nan", "-1", "zwei", ""))),
            (*finetune, "--init", generator.choice(("", "nowhere", "photo.png"))),
            ("finetune", "--measure", generator.choice(("", "nowhere", "."))),
            ("trust", MODEL, generator.choice(("nowhere", "", ".", "photo.txt")), "--out", "card.html"),
            ("trust", MODEL, ".", "--out", generator.choice(("card.pdf", "", ".", "no/where.html"))),
            ("export", generator.choice(("", "nowhere", ".")), "vit.onnx"),
            ("export", MODEL, "vit.onnx", "--bits", generator.choice(("4", "0", "zwei", ""))),
            ("info", generator.choice(("nowhere", "", ".", "/", "a b/c d"))),
            (generator.choice(("explian", "", "--methods", "evaluat", value)),),
        ]
    )
    return " ".join(words), True, command(*words)


def checkpoints(generator, folder):
    """A copy of a checkpoint with one thing wrong."""
    copy = folder / "vit"
    shutil.copytree(CHECKPOINTS / MODEL, copy)
    picture(generator).save("photo.png")
    tried, meaningless = generator.choice((_weights, _weights, _configuration, _configuration, _processor))(
        generator, copy
    )
    return tried, meaningless, command("explain", "photo.png", "--model", copy, "--out", "maps")


def _weights(generator, copy):
    from safetensors.torch import load_file, save_file

    path = copy / "model.safetensors"
    how = generator.choice(
        ("cut", "header", "missing", "empty", "pickle", "NaN", "inf", "tensor missing", "shape", "renamed")
    )
    if how == "cut":
        path.write_bytes(path.read_bytes()[: generator.randrange(1, path.stat().st_size)])
    elif how == "header":
        content = bytearray(path.read_bytes())
        content[generator.randrange(8)] ^= 1 << generator.randrange(8)
        path.write_bytes(content)
    elif how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "pickle":
        torch.save({"weights": torch.zeros(2)}, path)
    else:
        tensors = load_file(path)
        name = generator.choice([n for n in sorted(tensors) if "mask_token" not in n])
        if how in ("NaN", "inf"):
            tensors[name].view(-1)[generator.randrange(tensors[name].numel())] = float(how)
        elif how == "shape":
            tensors[name] = torch.cat([tensors[name], tensors[name]])
        else:
            values = tensors.pop(name)
            if how == "renamed":
                tensors[name + ".old"] = values
        save_file(tensors, path, metadata={"format": "pt"})
        how = f"{how} in {name}"
    return f"weights: {how}", True


def _configuration(generator, copy):
    path = copy / "config.json"
    config = json.loads(path.read_text())
    key = generator.choice(
        ("num_hidden_layers", "num_attention_heads", "hidden_size", "patch_size", "id2label", "text", "num_channels")
    )
    if key == "text":
        text = path.read_text()
        path.write_text(
            generator.choice((text[: generator.randrange(1, len(text) - 3)], "", "[]", "null", "\0" * 9, "{}"))
        )
        return "configuration: text", True
    if key == "id2label":
        ids = config["id2label"]
        wrong = generator.choice(
            ({str(int(k) + 1): v for k, v in ids.items()}, {k: ids[k] for k in list(ids)[:-1]}, 5, [1])
        )
        config["id2label"] = wrong
        config.pop("label2id", None)
    else:
        old = config.get(key, 3)
        wrong = generator.choice((0, -1, old + generator.randint(1, 5), old + 0.5, "zwei", [1], 10**6))
        config[key] = wrong
    path.write_text(json.dumps(config))
    return f"configuration: {key}", True


def _processor(generator, copy):
    path = copy / "preprocessor_config.json"
    config = json.loads(path.read_text())
    key = generator.choice(("text", "image_mean", "image_std", "size", "rescale_factor"))
    if key == "text":
        text = path.read_text()
        path.write_text(generator.choice((text[: generator.randrange(1, len(text) - 3)], "", "[]", "null", "\0")))
        return "processor: text", True
    numbers = [0.0, 0.0, 0.0], [math.nan] * 3, [0.5] * generator.choice((1, 2, 4, 7)), "zwei", [math.inf] * 3
    config[key] = {
        "image_mean": generator.choice(numbers[1:]),
        "image_std": generator.choice(numbers),
        "size": generator.choice((0, -5, {"height": 0, "width": 0}, {"height": -8, "width": 8}, "zwei", {"depth": 3})),
        "rescale_factor": generator.choice((math.nan, "zwei", math.inf)),
    }[key]
    path.write_text(json.dumps(config))
    return f"processor: {key}", not (key.startswith("image") and len(config[key]) == 1)
