"""What is available, and what a picture's attention takes."""

import numpy as np
import psutil
import pytest
import torch
import transformers as hf
from families import build

from gmar_utils import load_model, memory

CPU = torch.device("cpu")


def test_what_is_available_is_the_least_of_machine_container_and_ulimit(monkeypatch, tmp_path):
    assert 0 < memory.available(CPU) <= psutil.virtual_memory().total
    used = psutil.Process().memory_info().vms
    with monkeypatch.context() as m:
        m.setattr(psutil.Process, "rlimit", lambda self, kind: (used + 10_000_000, psutil.RLIM_INFINITY))
        assert memory.available(CPU) <= 10_000_000 + used // 2
    (tmp_path / "max").write_text("5000\n")
    (tmp_path / "now").write_text("1000\n")
    with monkeypatch.context() as m:
        m.setattr(memory, "_LIMITS", ((tmp_path / "max", tmp_path / "now"),))
        assert memory.available(CPU) == 4000
        (tmp_path / "now").write_text("6000\n")
        assert memory.available(CPU) == 0
        (tmp_path / "max").write_text("max\n")  # no limit
        assert memory.available(CPU) > 10_000


@pytest.mark.parametrize("family", ["vit", "beit", "clip", "dinov2"])
def test_attention_takes_layers_heads_and_tokens_squared(family):
    assert memory.attention_bytes(build(family), (2, 3, 64, 48)) == 4 * 2 * 3 * 4 * (8 * 6) ** 2


def test_models_that_do_not_say_are_judged_by_their_pixels_alone(monkeypatch):
    model = torch.nn.Linear(2, 2)
    assert memory.attention_bytes(model, (1, 3, 64, 64)) is None
    stages = hf.SwinConfig(image_size=32, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4)
    assert memory.attention_bytes(hf.SwinForImageClassification(stages), (1, 3, 32, 32)) is None
    monkeypatch.setattr(memory, "available", lambda device: 4 * 3 * 64 * 64)
    memory.check_fits(model, (1, 3, 64, 64), CPU)
    with pytest.raises(MemoryError, match="64×65"):
        memory.check_fits(model, (1, 3, 64, 65), CPU)


@pytest.mark.parametrize("call", ["explain", "predict"])
@pytest.mark.parametrize("side", [64, 96])
def test_a_picture_that_cannot_fit_is_refused_before_the_first_pass(monkeypatch, call, side):
    model, passes = build("vit", image_size=side), []
    vit = load_model(model, mean=[0.5] * 3, std=[0.5] * 3, size=side, device="cpu")
    monkeypatch.setattr(memory, "available", lambda device: memory.attention_bytes(model, (1, 3, side, side)) - 1)
    model.register_forward_pre_hook(lambda *_: passes.append(None))
    with pytest.raises(MemoryError, match=f"{side}×{side} pixels the attention of 1 picture"):
        getattr(vit, call)(np.zeros((40, 40, 3), np.uint8))
    assert not passes


def test_a_size_that_cannot_fit_is_refused_when_a_model_is_loaded():
    with pytest.raises(MemoryError, match="14000×14000"):
        load_model("vit-small-tiny-imagenet", image_size=14_000, device="cpu")
