"""Checkpoints: weights that are all there, the processor they were trained with, and sizes other than the trained."""

import copy
import inspect
import os
import re
import warnings
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.func import functional_call

from .capture.layout import logits_of, uncompiled, unwrap, vision_config
from .memory import check_fits
from .photo import prepare
from .prompts import TOWERS, ZeroShot

CHECKPOINTS = Path(__file__).parent / "checkpoints"


def bundled() -> list[str]:
    """Names of the checkpoints that come with the package."""
    return sorted(p.parent.name for p in CHECKPOINTS.glob("*/config.json"))


def located(name: str | os.PathLike) -> str | Path:
    """A bundled checkpoint's folder; any other name as it is: a folder, or a hub id."""
    return CHECKPOINTS / name if str(name) in bundled() else name


def pretrained(name: str | os.PathLike, *, new_head: bool = False, **options: object) -> nn.Module:
    """The classifier in a bundled checkpoint, a folder or on the hub, in float32, with every weight from the file.

    A model of pictures and texts (CLIP, SigLIP) comes as `ZeroShot`, unless it is to get a new head.

    Args:
        name: bundled name, folder or hub id.
        new_head: leave out the classification head, which then is random: to be trained.
        options: of `from_pretrained`; `num_hidden_layers` takes the first layers only.

    Raises:
        OSError: When it cannot be found or read.
        ValueError: When config and weights do not fit each other, or a weight is missing, NaN or infinite.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, AutoTokenizer

    source, name = located(name), str(name)
    local = Path(source).is_dir()
    offline = not local and not _hub_answers(name)  # transformers itself would try again for half a minute
    here = {"local_files_only": local or offline}
    try:
        config = AutoConfig.from_pretrained(source, **here)
        prompted = not new_head and not TOWERS.isdisjoint(config.architectures or ())
        module, info = (AutoModel if prompted else AutoModelForImageClassification).from_pretrained(
            source, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **here, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(source, **here) if prompted else None
    except Exception as error:  # a broken file ends in whatever its reader stumbles over
        reason = _reason(error)
        if "weights_only" in str(error) or "nsafe" in reason:
            raise OSError(
                f"The weights of {name!r} are a pickle file that holds more than tensors: it can run code when it is "
                "read. Ask its authors for model.safetensors, or convert it to safetensors where that is safe."
            ) from None
        if local:
            raise OSError(f"The folder {name!r} could not be loaded ({type(error).__name__}): {reason}") from None
        reason = "the hub is out of reach and no copy is cached" if offline else reason
        there = ", ".join(bundled())
        raise OSError(f"{name!r} is not a bundled model ({there}) nor a folder, and as a hub id: {reason}.") from None
    _check_complete(module, info, name, new_head, cut="num_hidden_layers" in options)
    return ZeroShot(module.eval(), tokenizer) if prompted else module


def _hub_answers(name):
    from huggingface_hub import HfApi, errors

    try:
        HfApi().model_info(name, timeout=10)
    except Exception as error:  # no such model: let transformers say it; else no network, no proxy, a timeout
        return isinstance(error, errors.HfHubHTTPError | errors.HFValidationError)
    return True


def _reason(error):
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _check_complete(module, info, name, new_head, cut):
    # a mask token is read in training alone; a head that is to be trained may be random
    spared = re.compile("mask_token|classifier|head" if new_head else "mask_token")
    missing = [k for k in info["missing_keys"] if not spared.search(k)]
    if untrained := [k for k in missing if "classifier" in k or "head" in k]:
        raise ValueError(
            f"{name!r} has no trained classification head ({_some(untrained)} missing). Take a fine-tuned checkpoint, "
            "such as facebook/dinov2-small-imagenet1k-1-layer, or fine-tune one: gmar finetune."
        )
    if wrong := [found for found in info["mismatched_keys"] if not spared.search(found[0])]:
        sizes = [f"{k} is {tuple(there)} in the file, {tuple(here)} by config.json" for k, there, here in wrong]
        raise ValueError(f"config.json and the weights of {name!r} do not fit each other: {_some(sizes)}.")
    if missing:
        raise ValueError(
            f"The weights of {name!r} are not complete: {_some(missing)} missing, which would be random numbers. "
            "Save the model again with save_pretrained, or correct the keys or config.json."
        )
    known = {re.sub(r"\d+", "#", key) for key in module.state_dict()}
    more = [k for k in info["unexpected_keys"] if re.sub(r"\d+", "#", k) in known]
    if more and not cut:
        raise ValueError(
            f"The file of {name!r} holds more layers than its config.json counts: {_some(more)} would be left out. "
            "Correct num_hidden_layers."
        )


def _some(keys):
    keys = sorted(keys)
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def check_weights(module: nn.Module, name: str) -> None:
    """ValueError when a weight is NaN or infinite."""
    if wrong := [k for k, v in module.named_parameters() if v.is_floating_point() and not v.isfinite().all()]:
        raise ValueError(
            f"The weights of {name!r} hold NaN or infinite values ({_some(wrong)}): a training that diverged, or a "
            "conversion to float16 that overflowed."
        )


def channels_of(module: nn.Module) -> int:
    """Input channels, by the configuration or else by the first convolution; 3 when neither says."""
    convolutions = (m.in_channels for m in module.modules() if isinstance(m, nn.Conv2d))
    return getattr(vision_config(module), "num_channels", None) or next(convolutions, 3)


def label_words(module: nn.Module) -> list[str]:
    """The words of the classes 0 to K − 1; empty for a model without any."""
    id2label = getattr(getattr(uncompiled(module), "config", None), "id2label", None) or {}
    ids = sorted(id2label)
    if ids != list(range(len(ids))):
        raise ValueError(
            f"id2label numbers the classes {ids[0]} to {ids[-1]} ({len(ids)} of them), but classes are counted from 0 "
            f"to {len(ids) - 1}. Correct id2label in config.json."
        )
    return [str(id2label[k]) for k in ids]


# --- processors -------------------------------------------------------------------------------------------------------


def image_processor(
    source: str | Path | None,
    module: nn.Module,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: int | tuple[int, int] | None = None,
) -> object:
    """The checkpoint's own processor on the PIL path; or one made of mean, std and size, and for what is not given of
    the configuration, 0.5 and 0.5, with a warning. mean, std: per channel; size: pixels, or (height, width)."""
    config = vision_config(module)
    if mean is None and std is None and size is None:
        if cfg := getattr(config, "pretrained_cfg", None) or getattr(unwrap(module), "pretrained_cfg", None):
            return _timm_processor(cfg, getattr(getattr(unwrap(module), "patch_embed", None), "img_size", None))
        if source is not None and (found := _saved_processor(source)) is not None:
            return found
    from transformers import ViTImageProcessorPil

    channels = channels_of(module)
    sides = pair(size if size is not None else getattr(config, "image_size", None) or 224)
    mean, std = (None if v is None else np.asarray(v, dtype=float).reshape(-1).tolist() for v in (mean, std))
    if mean is None or std is None:
        warnings.warn(
            f"No processor file is used: pictures become {sides[0]}×{sides[1]} pixels, with mean {mean or 0.5} and "
            f"standard deviation {std or 0.5}. If it was trained otherwise, pass mean=, std= and size=, or processor=.",
            stacklevel=3,
        )
    return ViTImageProcessorPil(size=sides, image_mean=mean or [0.5] * channels, image_std=std or [0.5] * channels)


def _saved_processor(source):
    """The processor of a folder or hub id; None where there is no file of one."""
    import transformers
    from transformers.utils import has_file

    try:
        try:
            return transformers.AutoImageProcessor.from_pretrained(source, backend="pil")
        except ImportError:  # older releases open no processor by this door without torchvision, which none needs here
            named = transformers.BaseImageProcessor.get_image_processor_dict(source)[0]["image_processor_type"]
            return getattr(transformers, f"{named.removesuffix('Fast')}Pil").from_pretrained(source)
    except Exception as error:  # whatever a broken file makes its reader stumble over
        names = ("preprocessor_config.json", "processor_config.json")
        if not (files := [name for name in names if has_file(source, name, local_files_only=True)]):
            return None
        raise ValueError(
            f"The processor file {files[0]!r} of {str(source)!r} is broken or of a kind that transformers "
            f"does not know ({_reason(error)}). Correct it, or pass mean=, std= and size=, or processor=."
        ) from None


def _timm_processor(cfg, img_size=None):
    """timm's own evaluation transform on the PIL path: the shortest side to size / crop_pct, then the centre."""
    from transformers import BitImageProcessorPil

    height, width = img_size or cfg["input_size"][1:]
    if height != width or cfg.get("crop_mode", "center") != "center":
        raise ValueError(
            f"Only timm's square centre crop is known here; this model has input size {height}×{width} and crop_mode "
            f"{cfg.get('crop_mode')!r}. Pass mean=, std= and size=, or processor=."
        )
    return BitImageProcessorPil(
        size={"shortest_edge": int(height / (cfg.get("crop_pct") or 0.875))},
        crop_size={"height": height, "width": width},
        resample=Image.Resampling[(cfg.get("interpolation") or "bicubic").upper()],
        image_mean=list(cfg["mean"]),
        image_std=list(cfg["std"]),
    )


def own_copy(processor: object) -> object:
    """A copy of the caller's image processor; of a multimodal processor, of its image side."""
    from transformers.image_processing_base import ImageProcessingMixin

    processor = getattr(processor, "image_processor", processor)
    if not isinstance(processor, ImageProcessingMixin):
        raise TypeError(
            f"processor must be an image processor of transformers, got {type(processor).__name__}. For another "
            "transform pass mean=, std= and size=, or prepare the pixel values yourself and call gmar_utils.explain."
        )
    return copy.deepcopy(processor)


def check_processor(processor: object, channels: int) -> torch.Size:
    """The shape (1, channels, h, w) of what it makes of a square picture.

    Raises:
        ValueError: When it makes nothing, or NaN or infinite values, or the same of black and white.
    """
    name = type(processor).__name__
    try:
        with np.errstate(all="ignore"):
            black, white = (prepare(processor, np.full((224, 224, channels), v, np.uint8)) for v in (0, 255))
    except Exception as error:
        raise ValueError(f"The processor {name} cannot prepare a picture of {channels} channels: {error}") from None
    usable = black.ndim == 4 and black.shape[1] == channels and 0 not in black.shape
    centre = (..., black.shape[-2] // 2, black.shape[-1] // 2)
    if not (usable and black.isfinite().all() and white.isfinite().all() and (white[centre] > black[centre]).all()):
        raise ValueError(
            f"The processor {name} makes no usable values of a picture of {channels} channels: their shape is "
            f"{tuple(black.shape)}, image_mean {processor.image_mean}, image_std {processor.image_std}, rescale_factor "
            f"{getattr(processor, 'rescale_factor', None)}. Standard deviations must be finite and above 0."
        )
    return black.shape


# --- another size -----------------------------------------------------------------------------------------------------


def at_size(module: nn.Module, processor: object, size: tuple[int, int]) -> nn.Module:
    """`processor` set to `size`, and a model that takes it: the module itself where that is so, else a shallow copy.

    The copy is of the same class and shares every weight and submodule. It differs by one hook, which asks the forward
    pass for interpolated position embeddings, so that maps and metrics need no extra argument."""
    shape, sides = (1, channels_of(module), *size), dict(zip(("height", "width"), size, strict=True))
    check_fits(module, shape, next(module.parameters()).device)  # before a picture is prepared at this size
    if getattr(processor, "do_center_crop", False):
        crop, known = processor.crop_size, {k: v for k, v in dict(processor.size).items() if v}
        processor.size = {k: round(v * sides.get(k, min(size)) / crop.get(k, crop["height"])) for k, v in known.items()}
        processor.crop_size = sides
    else:
        processor.size = sides
    if (prepared := check_processor(processor, shape[1])) != shape:
        raise ValueError(
            f"{type(processor).__name__} cannot be set to {size[0]}×{size[1]} pixels; it makes {tuple(prepared[2:])}. "
            "Pass mean=, std= and size=, or a processor for this size."
        )
    asked = {"interpolate_pos_encoding": True}
    by_name = "interpolate_pos_encoding" in inspect.signature(uncompiled(module).forward).parameters
    plain = "not asked" if by_name else failure(module, shape)
    if plain is None:
        return module
    if (reason := failure(module, shape, **asked)) is not None:
        reason = reason if by_name else plain
        raise ValueError(f"{type(module).__name__} cannot run at {size[0]}×{size[1]} pixels: {reason}")
    twin = copy.copy(module)
    for hooks in ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"):
        setattr(twin, hooks, getattr(module, hooks).copy())
    twin.register_forward_pre_hook(lambda _, args, kwargs: (args, asked | kwargs), with_kwargs=True)
    return twin


def failure(module: nn.Module, shape: Sequence[int], **given: object) -> str | None:
    """Why the model cannot run on pixel values of `shape`; None when it can. A model of transformers is first asked on
    tensors without data, which costs nothing at any size. given: more arguments of its forward pass."""
    from transformers import PreTrainedModel

    module = uncompiled(module)
    here, dtype = next(module.parameters()).device, next(module.parameters()).dtype
    weights, devices = {}, [here]
    if isinstance(module, PreTrainedModel):
        named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
        weights, devices = {k: torch.empty_like(v, device="meta") for k, v in named}, ["meta", here]
    reason = None
    for device in devices:  # a part that is no parameter has data on its own device: then only the true pass can tell
        try:
            x = torch.zeros(shape, device=device, dtype=dtype)
            with torch.no_grad():
                logits_of(functional_call(module, weights if device == "meta" else {}, (x,), given))
            return None
        except Exception as error:  # whatever the model stumbles over
            reason = " ".join(str(error).split()) or type(error).__name__
    return reason


def pair(size: object) -> tuple[int, int]:
    """(height, width) of one number for both or two; ValueError unless they are whole and at least 1."""
    sides = size if isinstance(size, list | tuple) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, Integral) and side >= 1 for side in sides):
        raise ValueError(f"A size is a whole number of pixels, or (height, width), of at least 1; got {size!r}.")
    return int(sides[0]), int(sides[1])
