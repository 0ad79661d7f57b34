"""A classifier with its preprocessing and its words: what it says of a photo, and why."""

import difflib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import nn

from . import checkpoint
from .capture import probability, trace
from .capture.checks import check_whole
from .capture.layout import logits_of
from .capture.target import parse_target
from .checkpoint import bundled
from .explanation import Explanation
from .memory import check_fits
from .methods.registry import METHODS, bind, in_batches, patch_scores, registered, scaled
from .photo import Pictures, as_list, is_one, prepare, read_photo, resize, to_photo
from .prompts import TOWERS, ZeroShot


@dataclass(frozen=True)
class Vit:
    """A model in eval mode with its preprocessing and its label words.

    Attributes:
        model: the classifier itself; goes in wherever a `model` does.
        processor: what prepares a photo for it.
        labels: the words of class 0, 1, …; empty for a model without any.
        name: what it was loaded as.
    """

    model: nn.Module
    processor: object
    labels: list[str]
    name: str

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def channels(self) -> int:
        """How many channels its pictures have: 3, or 1 for grey ones, or any other number."""
        return checkpoint.channels_of(self.model)

    # --- photos in, maps back

    def preprocess(self, images: Pictures, window: tuple[float, float] | None = None) -> torch.Tensor:
        """Pixel values (B, channels, height, width) on the model's device, float32 (or in the model's own dtype).

        Args:
            images: one picture or several: path, PIL image, array or tensor (see `photo.read_photo`), or any iterable.
            window: values shown as black and white in 16-bit and float pictures.

        Raises:
            ValueError, TypeError, FileNotFoundError: For what is no picture, naming it.
        """
        prepared = self._prepared([read_photo(i, self.channels, window) for i in as_list(images)])
        shapes = sorted({f"{p.shape[2]}×{p.shape[3]}" for p in prepared})
        if len(shapes) > 1:
            raise ValueError(
                f"The processor makes values of different shapes of these photos ({', '.join(shapes)}), which are no "
                "batch. Pass one at a time, or explain() with the whole list."
            )
        return torch.cat(prepared)

    def _prepared(self, photos) -> list[torch.Tensor]:
        """Pixel values (1, channels, h, w) of each photo."""
        weight = next(self.model.parameters())
        return [prepare(self.processor, np.atleast_3d(photo)).to(weight) for photo in photos]

    def to_photo(self, maps: torch.Tensor, images: Pictures) -> list[torch.Tensor]:
        """Maps (B, r, c) → B tensors (height, width), float32, on each photo's own pixels; NaN outside the crop.

        Raises:
            ValueError: When it is not known where the processor looks in a photo.
        """
        sizes = [np.asarray(read_photo(i, self.channels, (0, 1))).shape[:2] for i in as_list(images)]
        return to_photo(maps, sizes, self.processor)

    # --- words

    def label(self, target: int) -> str:
        """The first of the class's words, or 'class 7' for a model without label words."""
        if target < 0:
            raise IndexError(f"Classes are counted from 0; got {target}.")
        return self._words(target)[0] if target < len(self.labels) else f"class {target}"

    def _words(self, target):
        return [self.labels[target]] if isinstance(self.model, ZeroShot) else self.labels[target].split(",")

    def asking(self, *prompts: str) -> "Vit":
        """The same model of pictures and texts (CLIP, SigLIP) with these prompts as its classes; one alone stands
        against the empty prompt. TypeError for a model with classes of its own."""
        if not isinstance(self.model, ZeroShot):
            raise TypeError(f"{self.name} has classes of its own, and takes no prompts; CLIP and SigLIP do.")
        prompts = list(dict.fromkeys(prompts if len(set(prompts)) > 1 else [*prompts, ""]))
        return replace(self, model=self.model.asking(prompts), labels=prompts)

    def prompted(self, target: object = None) -> "Vit":
        """Itself; of a model of pictures and texts, with the words of a target that are not among its prompts."""
        if not isinstance(self.model, ZeroShot):
            return self
        asked = [t for t in (target if isinstance(target, list | tuple) else [target]) if isinstance(t, str)]
        if not (asked or self.labels):
            raise ValueError(f'{self.name} has no classes. Pass target="a photo of a cat", or use .asking("a cat", …).')
        return self if set(asked) <= set(self.labels) else self.asking(*filter(None, self.labels), *asked)

    def class_id(self, word: str | int) -> int:
        """The id of a class from one of its label words ("tabby"), whatever their case, or from its number.

        A label that is a number itself wins over the number of a class.

        Raises:
            ValueError: When no label, or more than one, has this word; it names those near it.
            IndexError: For a number outside of the model's classes.
        """
        if isinstance(word, str):
            text, ids = word.strip().lower(), self._ids()
            found = sorted(ids.get(text, ()))
            if len(found) == 1:
                return found[0]
            if found:
                which = ", ".join(f"{i} ({self.labels[i]})" for i in found[:5])
                raise ValueError(f"{len(found)} classes have the label {word!r}: {which}. Pass one of the numbers.")
            if not text.removeprefix("-").encode().isdigit():  # of bytes: the digits 0 to 9 alone
                near = [w for w in ids if text in w] or difflib.get_close_matches(text, ids, 3, 0.75)
                near = list(dict.fromkeys(self.label(i) for w in near for i in sorted(ids[w])))[:5] if text else []
                hint = f"near it: {', '.join(near)}" if near else "all of them: .labels, or gmar info MODEL"
                raise ValueError(f"The model has no label {word!r}; {hint}.")
            word = int(text)
        elif isinstance(word, bool) or not hasattr(word, "__index__"):
            raise TypeError(f"A class is a label word or a whole number, got {word!r}.")
        word = int(word)
        top = max(len(self.labels), 2) - 1 if self.labels else "K − 1"  # one label can stand for two classes
        if word < 0 or self.labels and word > top:
            raise IndexError(f"target {word} is outside the model's classes 0 to {top}.")
        return word

    def _ids(self) -> dict[str, set[int]]:
        """{word in lower case: the classes that have it}; a whole label is a word, too."""
        ids = {}
        for i, label in enumerate(self.labels):
            for word in (label, *self._words(i)):
                ids.setdefault(word.strip().lower(), set()).add(i)
        return ids

    # --- what it says, and why

    def predict(
        self, images: Pictures, top: int = 5, *, window: tuple[float, float] | None = None, batch_size: int = 32
    ) -> "pd.DataFrame":  # noqa: F821 (slow to import)
        """The likeliest classes of each picture.

        Args:
            images: one picture or several, as `preprocess` takes them.
            top: classes a picture.
            window: as in `preprocess`.
            batch_size: pictures in a forward pass.

        Returns:
            A DataFrame with the columns file, rank (from 1), label, class_id and probability (NaN for regression).
        """
        import pandas as pd

        check_whole("top", top)
        self = self.prompted()
        images = as_list(images)
        photos = [read_photo(i, self.channels, window) for i in images]

        def answered(values, at):
            with torch.inference_mode():
                return list(logits_of(self.model(values)).float())

        logits = torch.stack(self._in_batches(photos, batch_size, answered))
        self._check(logits)
        scores = torch.cat([-logits, logits], 1) if logits.shape[1] == 1 else logits  # one logit, two classes
        ids, rows = scores.topk(min(top, scores.shape[1])).indices, []
        for i, (image, chosen, row) in enumerate(zip(images, ids, logits, strict=True)):
            shown = self._probability(row.expand(len(chosen), -1), chosen)
            file = str(image) if isinstance(image, str | os.PathLike) else f"picture {i}"
            ranked = enumerate(zip(chosen.tolist(), shown, strict=True), 1)
            rows += [(file, rank, self.label(k), k, p) for rank, (k, p) in ranked]
        columns = ["file", "rank", "label", "class_id", "probability"]
        return pd.DataFrame(rows, columns=columns).astype({"probability": float})

    def explain(
        self,
        images: Pictures,
        method: str | Callable = "gmar",
        target: int | str | Sequence[int | str] | np.ndarray | torch.Tensor | None = None,
        *,
        window: tuple[float, float] | None = None,
        batch_size: int = 32,
        prefix_tokens: int | None = None,
        grid: tuple[int, int] | None = None,
        **options: object,
    ) -> Explanation | list[Explanation]:
        """Why the model says what it says: class, probability and map of each picture from one pass.

        Args:
            images: one picture or several, as `preprocess` takes them.
            method: a key of METHODS, or a callable trace → token scores (B, N), also a `functools.partial`.
            target: None (the predicted class); a class id or a label word (of CLIP and SigLIP any text); a tuple (a, b)
                of two, the contrast y_a − y_b; or a list with one entry for each picture.
            window: as in `preprocess`.
            batch_size: pictures in a pass.
            prefix_tokens: P, and
            grid: (R, C), of a model whose patch embedding does not say them (see `trace`).
            **options: that method's own. A method whose scores have a sign (and a callable) also takes signed=True: the
                map keeps it, in [−1, 1]; without it only what speaks for the class is shown.

        Returns:
            An Explanation; a list of them when several pictures went in.

        Raises:
            ValueError, TypeError, IndexError: For an unknown method, option or class, and for what is no picture,
                before anything runs.
            MemoryError: When the attention of one picture cannot fit.
        """
        self = self.prompted(target)
        known, own = METHODS.get(method) if isinstance(method, str) else registered(method), dict(options)
        signed = (known is None or known.signed) and bool(own.pop("signed", False))
        function = bind(method, **own)
        name = known.name if known else getattr(function.func, "__name__", type(function.func).__name__)
        photos = [read_photo(i, self.channels, window) for i in as_list(images)]
        targets = self._targets(target, len(photos))

        def explained(values, at):
            wanted = targets[at] if isinstance(targets, torch.Tensor) else targets
            gradients = known is None or known.class_aware
            seen = trace(self.model, values, wanted, prefix_tokens, grid, gradients=gradients, lazy=True)
            maps = scaled(patch_scores(name, function, seen), known, signed)
            self._check(seen.logits, seen.grid)
            large = scaled(resize(maps, values.shape[-2:]), signed=signed)
            sure, results = self._probability(seen.logits, seen.target), []
            found = zip(at, seen.target.tolist(), sure, maps.cpu(), large.cpu(), strict=True)
            for i, k, share, patches, at_input in found:
                pair = targets if isinstance(targets, tuple) else (k,)
                label = " rather than ".join(map(self.label, pair))
                about = targets if len(pair) == 2 else k, label, share, name, function.keywords | options, signed
                photo = photos[i] if isinstance(photos[i], Image.Image) else Image.fromarray(photos[i][..., 0])
                results.append(Explanation(patches, photo, *about, at_input, self.processor))
            return results

        results = self._in_batches(photos, batch_size, explained)
        return results[0] if is_one(images) else results

    def _in_batches(self, photos, batch_size, function):
        """function(pixel values, positions) gives a list; together the results for the photos, in their order. Photos
        that the processor makes of one shape go together."""
        prepared, by_shape, results = self._prepared(photos), {}, {}
        for i, values in enumerate(prepared):
            check_fits(self.model, values.shape, self.device)
            by_shape.setdefault(values.shape, []).append(i)
        for at in by_shape.values():
            values = torch.cat([prepared[i] for i in at])
            parts = in_batches(lambda part, v=values, at=at: function(v[part], at[part]), len(at), batch_size)
            results |= zip(at, sum(parts, []), strict=True)
        return [results[i] for i in range(len(photos))]

    def _targets(self, target, count):
        """The target in class ids, for `count` pictures."""
        target = target.tolist() if hasattr(target, "tolist") else target
        if isinstance(target, tuple | list):
            ids = [self.class_id(t) for t in target]
            return parse_target(tuple(ids) if isinstance(target, tuple) else ids, count)
        return None if target is None else self.class_id(target)

    def _probability(self, logits, target):
        try:
            return probability(self.model, logits, target).tolist()
        except ValueError:  # a regression head has none
            return [None] * len(target)

    def _check(self, logits, grid=None):
        if grid == (1, 1):
            raise ValueError("The model sees one patch of this picture: one value is no map. Use a larger image size.")
        if not logits.isfinite().all():
            raise ValueError("The model's logits are NaN or infinite. Float16 may overflow: use bfloat16 or float32.")
        classes, words = logits.shape[1], len(self.labels)
        made_up = all(text.startswith("LABEL_") for text in self.labels)  # transformers' own, where none were given
        if words and not made_up and words not in (classes, max(classes, 2)):  # one logit, two
            raise ValueError(
                f"The model gives {classes} logits, but its configuration has {words} label words, so they would name "
                "the wrong classes. Correct config.id2label."
            )


def load_model(
    model: str | os.PathLike | nn.Module,
    *,
    processor: object = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: int | tuple[int, int] | None = None,
    image_size: int | tuple[int, int] | None = None,
    device: str | torch.device = "auto",
) -> Vit:
    """A classifier ready to be explained: in eval mode, on the device, every weight from its file.

    Args:
        model: a bundled name (`bundled()`), a folder, a hub id, or a model object of transformers or timm, or any
            module that returns logits. A model object is put into eval mode and on the device, else left as it is.
        processor: an image processor of transformers in place of the checkpoint's own; a copy of it is used.
        mean: per channel, and
        std: per channel, and
        size: pixels, or (height, width): the preprocessing of a checkpoint without a processor file.
        image_size: run at another resolution, an int or (height, width), with interpolated position embeddings.
            Where that needs a hook, `.model` is a shallow copy that shares the weights of the model object given.
        device: "auto" (a GPU if there is one), or a PyTorch device.

    Raises:
        OSError: When a name is neither bundled, nor a folder, nor a hub id that answers, or its files cannot be read.
        ValueError: When a checkpoint is not whole (a weight missing, NaN or of another shape, no trained head, labels
            that are not counted from 0, a broken processor file), or the model cannot run at the size.
        TypeError: For a model or processor that is none.
        MemoryError: When the attention at `image_size` cannot fit.
    """
    device = _device(device)
    if isinstance(model, nn.Module):
        name, source = type(model).__name__, None
        if name in TOWERS and not hasattr(processor, "tokenizer"):
            raise TypeError(f"{name} reads texts: pass processor=, one with a tokenizer (AutoProcessor).")
        module = ZeroShot(model.eval(), processor.tokenizer) if name in TOWERS else model
        if next(module.parameters(), None) is None:
            raise ValueError(f"{name} has no parameters: it is no trained model.")
    elif isinstance(model, str | os.PathLike) and str(model).strip():
        name, source, module = str(model), checkpoint.located(model), checkpoint.pretrained(model)
    else:
        names = ", ".join(bundled())
        raise TypeError(f"A model is a bundled name ({names}), a folder, a hub id or a module; got {model!r}.")
    checkpoint.check_weights(module, name)
    if processor is None:
        processor = checkpoint.image_processor(source, module, mean, std, size)
    processor = checkpoint.own_copy(processor)
    shape = checkpoint.check_processor(processor, checkpoint.channels_of(module))
    module = module.to(device).eval()
    if image_size is not None:
        module = checkpoint.at_size(module, processor, checkpoint.pair(image_size))
    elif source is not None and (error := checkpoint.failure(module, shape)) is not None:
        raise ValueError(
            f"{name!r} cannot run on the {shape[2]}×{shape[3]} pixels that its processor makes: {error}. Correct "
            "config.json or the processor file, or pass size= or image_size=."
        )
    return Vit(module, processor, checkpoint.label_words(module), name)


def _device(device):
    best = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=best if str(device) == "auto" else device).device
    except Exception as error:  # PyTorch asserts, raises RuntimeError or NotImplementedError
        raise ValueError(f"The device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from None
