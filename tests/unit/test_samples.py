"""How samples are kept: grey levels of the decoder's means, clamped, or stretched as the published program writes them."""

import io

import numpy as np
import torch
from PIL import Image

import vaebm.torchvision_operators  # noqa: F401  before torchvision

# isort: split
from torchvision.utils import save_image

from vaebm.samples import grey_levels

MEANS = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.01, 0.1, 0.3, 1.0, 3.0]).view(5, 1, 1, 1) + 0.5
"""Of little contrast and of much, the last ones outside of [0, 1]."""


def test_stretched_images_are_what_torchvision_writes() -> None:
    """save_image(normalize=True), an image a file; it adds ½ and cuts, here the nearest level is taken: both differ in ties alone."""
    for image, found in zip(MEANS, grey_levels(MEANS, stretch=True), strict=True):
        file = io.BytesIO()
        save_image(image, file, format="png", normalize=True)
        assert np.array_equal(np.asarray(Image.open(file)), found.numpy())
        assert found.min() == 0 and found.max() == 255


def test_a_stretch_is_one_for_all_colours() -> None:
    """Hue survives it; an image of one grey level becomes black, as torchvision's does."""
    image = torch.tensor([0.2, 0.3, 0.6]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert grey_levels(image, stretch=True)[0, 0, 0].tolist() == [0, 64, 255]
    assert not grey_levels(torch.full((2, 1, 4, 4), 0.7), stretch=True).any()


def test_else_means_are_clamped_and_nothing_more() -> None:
    found = grey_levels(MEANS, stretch=False)
    assert found.shape == (5, 8, 8, 3) and found.dtype == torch.uint8
    expected = np.rint(np.clip(MEANS.numpy(), 0, 1) * 255).transpose(0, 2, 3, 1)
    assert np.abs(found.numpy().astype(int) - expected).max() == 0
