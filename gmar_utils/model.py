"""Models: bundled checkpoints, folders, hub ids and plain modules, with the preprocessing each was trained with."""

import inspect
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from PIL import Image
from safetensors import SafetensorError
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, BitImageProcessorPil, ViTImageProcessorPil

from .capture.layout import vision_config
from .photo import read_photo, to_photo

CHECKPOINTS = Path(__file__).parent / "checkpoints"


def bundled() -> list[str]:
    """Names of the checkpoints that come with the package."""
    return sorted(p.parent.name for p in CHECKPOINTS.glob("*/config.json"))


@dataclass(frozen=True)
class Vit:
    """A model in eval mode with its preprocessing and its label words (index = class id)."""

    model: nn.Module
    processor: object
    labels: list[str]
    name: str

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def channels(self) -> int:
        return getattr(vision_config(self.model), "num_channels", 3)

    def preprocess(self, images, window: tuple[float, float] | None = None) -> torch.Tensor:
        """Pixel values (B, channels, height, width), float32, on the model's device.

        images  one picture or a list: path, PIL image or array (see `photos.read_photo`, also for `window`)"""
        photos = [read_photo(i, self.channels, window) for i in _as_list(images)]
        arrays = [np.asarray(p)[..., None] if self.channels == 1 else np.asarray(p) for p in photos]
        batch = self.processor(arrays, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        return batch.to(self.device, torch.float32)

    def to_photo(self, maps: torch.Tensor, images) -> list[torch.Tensor]:
        """Maps (B, r, c) → a list of float32 (height, width), on each photo's own pixels; NaN outside the crop."""
        sizes = [read_photo(i, window=(0, 1)).size[::-1] for i in _as_list(images)]
        return to_photo(maps, sizes, self.processor)

    def label(self, target: int) -> str:
        """The first of the class's words, or 'class 7' for a model without label words."""
        return self.labels[target].split(",")[0] if target < len(self.labels) else f"class {target}"


def load_model(
    model: str | Path | nn.Module,
    *,
    processor=None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    size: int | tuple[int, int] | None = None,
    image_size: int | tuple[int, int] | None = None,
    device: str = "auto",
) -> Vit:
    """A classifier ready to be explained: eval mode, float32, on the device.

    model       a bundled name (`bundled()`), a local folder, a hub id, or a model object
    processor   an image processor, in place of the checkpoint's own
    mean, std, size   preprocessing of a checkpoint without a processor file: per channel, and pixels
    image_size  run at another resolution, int or (height, width), with interpolated position embeddings
    device      "auto" (a GPU if there is one), or a PyTorch device

    Raises ValueError for a checkpoint without a trained classification head, OSError when a name is neither bundled,
    nor a folder, nor a hub id that answers.
    """
    if isinstance(model, nn.Module):
        name, source, module = type(model).__name__, None, model
    else:
        name, source = str(model), CHECKPOINTS / model if str(model) in bundled() else model
        module = _from_pretrained(source, name)
    config = getattr(module, "config", None)
    if processor is None:
        processor = _processor(source, vision_config(module), mean, std, size)
    if image_size is not None:
        _run_at(module, processor, _pair(image_size))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    id2label = getattr(config, "id2label", None) or {}
    labels = [str(id2label[k]) for k in sorted(id2label)]
    return Vit(module.to(device).eval(), processor, labels, name)


def _from_pretrained(source, name, new_head=False, **options):
    local = Path(source).is_dir()
    offline = not local and not _hub_answers(name)  # transformers itself would try again for half a minute
    try:
        module, info = AutoModelForImageClassification.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True, local_files_only=local or offline, **options
        )
    except (OSError, ValueError, SafetensorError) as error:
        if local:
            raise OSError(f"The folder {name!r} could not be loaded: {error}") from None
        reason = "the hub is out of reach and no copy is cached" if offline else str(error).strip().splitlines()[0]
        raise OSError(
            f"{name!r} is not a bundled model ({', '.join(bundled())}) nor a local folder, and as a hub id: {reason}."
        ) from None
    untrained = [k for k in info["missing_keys"] if "classifier" in k or "head" in k]
    if untrained and not new_head:
        raise ValueError(
            f"{name!r} has no trained classification head ({', '.join(sorted(untrained))} are missing). Take a "
            "fine-tuned checkpoint, such as facebook/dinov2-small-imagenet1k-1-layer, or fine-tune one: gmar finetune."
        )
    return module


def _hub_answers(name):
    try:
        HfApi().model_info(name, timeout=10)
    except (HfHubHTTPError, HFValidationError):
        return True  # it answers 'no such model', or would: let transformers say it
    except Exception:  # no network, no proxy, a timeout: whatever the HTTP library calls it
        return False
    return True


def _processor(source, config, mean, std, size):
    given = {"image_mean": mean, "image_std": std, "size": size}
    if source is not None and all(v is None for v in given.values()):
        if getattr(config, "pretrained_cfg", None):
            return _timm_processor(config.pretrained_cfg)
        try:
            return AutoImageProcessor.from_pretrained(source, backend="pil")
        except (OSError, ValueError):
            pass  # no processor file: fall through to the configuration's defaults
    channels = getattr(config, "num_channels", 3)
    expected = size if size is not None else getattr(config, "image_size", 224)
    if mean is None or std is None:
        warnings.warn(
            "No processor file: pictures are resized to "
            f"{_pair(expected)} and normalised with mean {mean or 0.5} and standard deviation {std or 0.5}. If the "
            "model was trained otherwise, pass mean=, std= and size=, or processor=.",
            stacklevel=3,
        )
    height, width = _pair(expected)
    return ViTImageProcessorPil(
        size={"height": height, "width": width},
        image_mean=list(mean) if mean is not None else [0.5] * channels,
        image_std=list(std) if std is not None else [0.5] * channels,
    )


def _timm_processor(cfg):
    """timm's own evaluation transform on the PIL path: the shortest side to size / crop_pct, then the centre."""
    _, height, width = cfg["input_size"]
    if height != width or cfg.get("crop_mode", "center") != "center":
        raise ValueError(
            "Only timm's square centre crop is known here; this model has input_size "
            f"{cfg['input_size']} and crop_mode {cfg.get('crop_mode')!r}. Pass mean=, std= and size=, or processor=."
        )
    return BitImageProcessorPil(
        size={"shortest_edge": math.floor(height / cfg.get("crop_pct", 0.875))},
        crop_size={"height": height, "width": width},
        resample=Image.Resampling[cfg.get("interpolation", "bicubic").upper()],
        image_mean=list(cfg["mean"]),
        image_std=list(cfg["std"]),
    )


def _run_at(module, processor, size):
    height, width = size
    if getattr(processor, "do_center_crop", False):
        if processor.size.get("shortest_edge"):
            scale = min(size) / processor.crop_size["height"]
            processor.size = {"shortest_edge": round(processor.size["shortest_edge"] * scale)}
        processor.crop_size = {"height": height, "width": width}
    else:
        processor.size = {"height": height, "width": width}

    # every later call of the model interpolates by itself, so that maps and metrics need no extra argument
    def interpolate(module, args, kwargs):
        return args, {"interpolate_pos_encoding": True, **kwargs}

    if "interpolate_pos_encoding" in inspect.signature(module.forward).parameters:
        module.register_forward_pre_hook(interpolate, with_kwargs=True)


def _pair(size):
    return (size, size) if isinstance(size, int) else tuple(size)


def _as_list(images):
    return list(images) if isinstance(images, list | tuple) else [images]
