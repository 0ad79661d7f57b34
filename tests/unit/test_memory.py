"""What is available, and what a picture's attention takes."""

import psutil
import pytest
import torch
from families import build

from gmar_utils import memory

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
    monkeypatch.setattr(memory, "available", lambda device: 4 * 3 * 64 * 64)
    memory.check_fits(model, (1, 3, 64, 64), CPU)
    with pytest.raises(MemoryError, match="64×65"):
        memory.check_fits(model, (1, 3, 64, 65), CPU)
