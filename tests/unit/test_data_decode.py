"""What becomes of each kind of picture."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from user_files import COLOUR, GREY, SIDE, noise, saved

from vaebm.data.decode import Unsuitable, read_picture, resize_and_crop


def write_png(path: Path, image: np.ndarray, colour: int) -> Path:
    """A PNG of 16 bits per channel, which Pillow does not write: kind of colour 0 grey, 2 RGB, 6 RGB and alpha."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in image)
    header = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], 16, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
            for kind, body in chunks
        )
    )
    return path


def become(path: Path, channels: int = 3) -> tuple[np.ndarray, list[str]]:
    with path.open("rb") as file:
        image, done = read_picture(file, channels)
    return np.asarray(image), done


DEEP = np.random.RandomState(3).randint(0, 1 << 16, (SIDE, SIDE, 3)).astype(np.uint16)


def test_grey_and_colour(tmp_path: Path) -> None:
    grey, colour = saved(tmp_path / "g.png", Image.fromarray(GREY)), saved(tmp_path / "c.png", Image.fromarray(COLOUR))
    assert np.array_equal(become(grey)[0], np.stack([GREY] * 3, -1)) and become(grey)[1] == ["grey to colour"]
    weighted = (COLOUR.astype(np.int64) @ [19595, 38470, 7471] + 32768) >> 16
    assert np.array_equal(become(colour, 1)[0], weighted) and become(colour, 1)[1] == ["colour to grey"]
    assert become(colour)[1] == become(grey, 1)[1] == []
    bits = saved(tmp_path / "b.png", Image.fromarray(GREY > 127))
    assert np.array_equal(become(bits, 1)[0], np.where(GREY > 127, 255, 0))


def test_16_bits_keep_the_upper_eight(tmp_path: Path) -> None:
    grey, colour = write_png(tmp_path / "g.png", DEEP[..., 0], 0), write_png(tmp_path / "c.png", DEEP, 2)
    assert np.array_equal(become(grey, 1)[0], DEEP[..., 0] >> 8) and become(grey, 1)[1] == ["16 bits to 8"]
    assert np.array_equal(become(colour)[0], DEEP >> 8) and become(colour)[1] == ["16 bits to 8"]
    assert np.array_equal(become(saved(tmp_path / "g.tif", Image.fromarray(DEEP[..., 0])), 1)[0], DEEP[..., 0] >> 8)


@pytest.mark.parametrize("white", [65535, 1000])
def test_16_bits_of_pgm_and_ppm(white: int, tmp_path: Path) -> None:
    """Values from 0 to what the file calls white; of grey the upper 8 of 16 bits, of colour the nearest of 8."""
    values = DEEP.astype(np.int64) % (white + 1)
    for name, kind, part in (("g.pgm", "P5", values[..., 0]), ("c.ppm", "P6", values)):
        (tmp_path / name).write_bytes(f"{kind} {SIDE} {SIDE} {white}\n".encode() + part.astype(">u2").tobytes())
    grey, colour = become(tmp_path / "g.pgm", 1), become(tmp_path / "c.ppm")
    assert np.array_equal(grey[0], np.rint(values[..., 0] / white * 65535).astype(int) >> 8) and np.array_equal(
        colour[0], np.rint(values / white * 255)
    )
    assert grey[1] == colour[1] == ["16 bits to 8"]


def test_nothing_but_the_kinds_that_are_named_is_opened(tmp_path: Path) -> None:
    """PostScript would be handed to another program."""
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(
        Unsuitable, match=r"expected a picture \(PNG, JPEG, .*\), found a file that is none, or one of another kind"
    ):
        become(path)


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    alpha = noise(4, SIDE, SIDE)
    over = COLOUR * (alpha[..., None] / 255) + 255 * (1 - alpha[..., None] / 255)
    found, done = become(saved(tmp_path / "a.png", Image.fromarray(np.dstack([COLOUR, alpha]))))
    assert np.abs(found - over).max() <= 1 and done == [
        "transparency over white"
    ]  # Pillow rounds the product to a grey level
    clear, done = become(
        saved(tmp_path / "l.png", Image.merge("LA", [Image.fromarray(GREY), Image.new("L", (SIDE, SIDE), 0)])), 1
    )
    assert (clear == 255).all() and done == ["transparency over white"]


def test_palettes_become_their_colours(tmp_path: Path) -> None:
    palette = noise(5, 16, 3)
    image = Image.fromarray(GREY % 16)
    image.putpalette(palette.tobytes())
    path = saved(tmp_path / "p.png", image)
    assert np.array_equal(become(path)[0], palette[GREY % 16]) and become(path)[1] == ["palette to colours"]
    path = saved(tmp_path / "t.png", image, transparency=3)
    assert np.array_equal(become(path)[0], np.where((GREY % 16 == 3)[..., None], 255, palette[GREY % 16]))
    frames = saved(tmp_path / "f.gif", image, save_all=True, append_images=[Image.new("P", (SIDE, SIDE))])
    assert "first of several frames" in become(frames)[1] and np.array_equal(become(frames)[0], palette[GREY % 16])


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    """Colours without black: R = 255 − C."""
    image = Image.merge("CMYK", [*Image.fromarray(COLOUR).split(), Image.new("L", (SIDE, SIDE), 0)])
    found, done = become(saved(tmp_path / "c.tif", image))
    assert np.array_equal(found, 255 - COLOUR) and done == ["CMYK to RGB"]


def test_a_picture_that_was_turned_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90° clockwise
    found, done = become(saved(tmp_path / "t.png", Image.fromarray(COLOUR[:5]), exif=exif))
    assert np.array_equal(found, np.rot90(COLOUR[:5], -1)) and done == ["turned upright"]


def test_sizes() -> None:
    """Twice as large: constant blocks keep their value, the sides are cut off evenly."""
    blocks = np.zeros((16, 24), np.uint8)
    blocks[:, 12:] = 200
    image, done = resize_and_crop(Image.fromarray(blocks), 8)
    assert image.shape == (8, 8, 1) and done == ["made smaller", "centre cut out"]
    assert (image[:, :3] == 0).all() and (image[:, 5:] == 200).all()
    assert resize_and_crop(Image.fromarray(GREY), 8)[1] == [] and np.array_equal(
        resize_and_crop(Image.fromarray(GREY), 8)[0][..., 0], GREY
    )
    with pytest.raises(Unsuitable, match="expected at least 9×9 pixels, found 8×8"):
        resize_and_crop(Image.fromarray(GREY), 9)
