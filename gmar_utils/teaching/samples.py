"""The book's pictures: scikit-image's own photos, all inside its wheel, and what is put together from them."""

from PIL import Image, ImageOps

from ..data import drawing

#: The methods that chapters compare: six that explain, then the two that any method must beat.
EIGHT = ("grad-cam", "rollout", "gmar", "legrad", "chefer", "attention", "random", "center")
PHOTOS = {"cat": "chelsea", "coffee": "coffee", "rocket": "rocket", "astronaut": "astronaut", "camera": "camera"}


def photo(name):
    """One of scikit-image's own photos (`PHOTOS`, all inside its wheel), as an RGB picture."""
    if name not in PHOTOS:
        raise ValueError(f"expected one of {', '.join(PHOTOS)}, got {name!r}")
    import skimage.data

    return Image.fromarray(getattr(skimage.data, PHOTOS[name])()).convert("RGB")


def cat_and_coffee():
    """The book's picture: the cat beside its coffee, 450 × 300; 3 : 2, like both photos it is cut from.

    Show it to a model at that shape, such as `load_model("vit-small-tiny-imagenet", image_size=(224, 336))`."""
    cat, coffee = photo("cat"), photo("coffee")
    picture = Image.new("RGB", (450, 300))
    picture.paste(cat.crop((113, 0, 338, 300)), (0, 0))
    picture.paste(coffee.crop((150, 0, 450, 400)).resize((225, 300), Image.Resampling.LANCZOS), (225, 0))
    return picture


def cut(*names):
    """Photos of `PHOTOS` cut to the shape of the book's picture, 450 × 300; without names, all of them."""
    return [ImageOps.fit(photo(name), (450, 300), centering=(0.5, 0)) for name in names or PHOTOS]


def star_and_cross():
    """A scene of two generated shapes that vit-shapes both names, for questions about two classes: the picture,
    256 × 256, and the mask of each object, {"star": (256, 256) bool array, "cross": …}."""
    made = drawing.scenes(21, 256, seed=8, objects=2)
    names = [drawing.CLASSES[k] for k in made.labels[20]]
    return Image.fromarray(made.images[20]), dict(zip(names, made.masks[20], strict=True))
