"""What stands where pixels are hidden: RISE's blur, and ROAD's linear imputation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from gmar_utils.metrics.imputation import blur, linear


@pytest.mark.parametrize("size, width", [(224, 11), (64, 3), (112, 7), (16, 3)])
def test_blur_is_rises_kernel(size, width):
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    delta = np.zeros((width, width))
    delta[width // 2, width // 2] = 1
    kernel = torch.tensor(gaussian_filter(delta, 5 * size / 224), dtype=torch.float32)
    expected = F.conv2d(image, kernel.expand(3, 1, -1, -1), padding=width // 2, groups=3)
    torch.testing.assert_close(blur(image), expected, atol=1e-5, rtol=1e-4)


def test_linear_imputation_continues_a_ramp_and_solves_its_equations():
    ramp = torch.arange(12.0).expand(1, 1, 12, 12).clone()
    shown = torch.ones(1, 12, 12, dtype=torch.bool)
    shown[:, 3:7, 4:8] = False
    torch.testing.assert_close(linear(ramp, shown, noise=0), ramp, atol=1e-4, rtol=0)
    image = torch.randn(1, 2, 12, 12, generator=torch.Generator().manual_seed(3))
    shown = torch.rand(1, 12, 12, generator=torch.Generator().manual_seed(4)) > 0.6
    filled = linear(image, shown, noise=0)
    torch.testing.assert_close(filled[:, :, shown[0]], image[:, :, shown[0]])
    for y, x in (~shown[0]).nonzero().tolist():
        total, weight = torch.zeros(2), 0.0
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                if (dy or dx) and 0 <= y + dy < 12 and 0 <= x + dx < 12:
                    w = 1 / 12 if dy and dx else 1 / 6
                    total, weight = total + w * filled[0, :, y + dy, x + dx], weight + w
        torch.testing.assert_close(filled[0, :, y, x], total / weight, atol=1e-4, rtol=0)


def test_linear_imputation_noise_is_seeded_and_small():
    image, hidden = torch.ones(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.bool)
    a = linear(image, hidden, seed=5)
    assert torch.equal(a, linear(image, hidden, seed=5)) and not torch.equal(a, linear(image, hidden, seed=6))
    assert 0.005 < a.std() < 0.02 and a.mean().abs() < 0.005
    assert torch.equal(linear(image, ~hidden), image)
