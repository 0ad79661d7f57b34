"""Draw hero.png (README, landing page) and social.png (link previews) from the bundled model and scikit-image's photos.

python book/assets/make_pictures.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402
from PIL import Image  # noqa: E402

from gmar_utils import METHODS, explain_many, load_model, viz  # noqa: E402
from gmar_utils.teaching.samples import cat_and_coffee  # noqa: E402

HERE = Path(__file__).parent
SHOWN = ("rollout", "gmar", "legrad", "grad-cam", "chefer")

photo = cat_and_coffee()
vit = load_model("vit-small-tiny-imagenet", image_size=(224, 336))
target = next(i for i, label in enumerate(vit.labels) if label.startswith("espresso"))
pixels = vit.preprocess(photo)
maps = explain_many(vit.model, pixels, {METHODS[m].title: m for m in SHOWN}, target=target)
maps = {title: vit.to_photo(m, [photo])[0] for title, m in maps.items()}


def draw(path, size, shape, dpi, heading=None):
    figure, axes = plt.subplots(*shape, figsize=size, dpi=dpi, layout="constrained", facecolor="white")
    viz.overlay(axes.flat[0], photo, title="Why “espresso”?")
    for ax, (title, values) in zip(axes.flat[1:], maps.items(), strict=False):
        viz.overlay(ax, photo, values, title)
    if heading:
        figure.suptitle(heading, fontsize=26, fontweight="bold")
    figure.savefig(path, metadata={"Software": None})
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)  # a third of the bytes


with plt.style.context(viz.STYLE):
    draw(HERE / "hero.png", (8, 4.0), (2, 3), 130)
    draw(HERE / "social.png", (12.8, 6.4), (2, 3), 100, "Explaining Vision Transformers")
