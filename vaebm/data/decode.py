"""Decode a picture to 8-bit pixels by fixed rules; other pictures are refused.

| found | becomes |
|---|---|
| rotated by its EXIF entry | upright |
| several frames | the first |
| 16 bits per channel | their upper 8 (PPM in colour: to the nearest of 8, by Pillow) |
| palette | its colours |
| transparent, by a channel, a palette or a colour key | composited over white |
| CMYK and other colour spaces | RGB, by Pillow, without colour profiles |
| grey where colour is wanted | three equal channels |
| colour where grey is wanted | (19595 R + 38470 G + 7471 B + 32768) / 65536, rounded down |
| larger | shorter side resized to `side` by Pillow's bilinear filter (antialiased, in integers), centre cropped |

Refused: damaged and truncated files, formats not in `FORMATS`, 32 bits per channel, pictures smaller than `side`, and
kinds of TIFF that Pillow misreads (`vaebm.data.raw_kinds`).
"""

from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from vaebm.data.raw_kinds import Unsuitable, check_png, check_tiff, key_to_alpha
from vaebm.system.errors import brief

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Formats that Pillow decodes by itself and identically everywhere; suffixes do not matter."""

Decoded = tuple[NDArray[np.uint8], list[str]]
"""Image (H, W, C), and the conversions applied to the picture, in words."""

__all__ = ["FORMATS", "Decoded", "Unsuitable", "read_picture", "read_resized", "resize_and_crop", "to_array"]


def read_picture(file: IO[bytes], channels: int) -> tuple[Image.Image, list[str]]:
    """Picture in a file, in mode L (1 channel) or RGB (3), and its conversions.

    Raises:
        Unsuitable: the file is damaged, not a picture, or not covered by the rules.
    """
    try:
        with Image.open(file, formats=FORMATS) as opened:
            kind = opened.format
            if kind == "TIFF":
                check_tiff(opened.tag_v2)  # type: ignore[attr-defined]
            done = ["first of several frames"] if getattr(opened, "n_frames", 1) > 1 else []
            done += ["16 bits to 8"] if any(_is_deep(kind, tile[3]) for tile in opened.tile) else []
            turned = opened.getexif().get(0x0112)  # a TIFF loses it when it is loaded, a PNG may have it at its end
            opened.load()
            if kind == "PNG":
                check_png(file)
            key = opened.info.get("transparency") if kind == "PNG" and opened.mode not in ("P", "PA") else None
            image = opened if key is None else key_to_alpha(file, opened, key)
            done += ["turned upright"] if {turned, opened.getexif().get(0x0112)} & {*range(2, 9)} else []
            upright = ImageOps.exif_transpose(image)
            if (kind, upright.mode) == ("PPM", "I"):  # 16 bits for any value of white
                upright = Image.fromarray(np.asarray(upright).astype(np.uint16))
            return _converted(upright, channels, done)
    except Unsuitable:
        raise
    except UnidentifiedImageError:
        raise Unsuitable(
            f"expected a picture ({', '.join(FORMATS)}), found a file that is none, or one of another kind"
        ) from None
    except Image.DecompressionBombError:
        raise Unsuitable(f"expected at most {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, found more") from None
    except Exception as error:  # Pillow raises many classes for damaged files
        if "MAX_TEXT" in str(error):
            raise Unsuitable("expected at most 1 MiB of text in a PNG, found more; remove its metadata") from None
        raise Unsuitable(f"expected a whole picture, found a damaged one ({brief(error)})") from None


def _is_deep(kind: str | None, arguments: object) -> bool:
    """Whether Pillow decodes 16 bits per channel, by its decoder's arguments; those of PPM contain white."""
    return ";16" in str(arguments) or (kind == "PPM" and isinstance(arguments, tuple) and arguments[1] > 255)


def _converted(image: Image.Image, channels: int, done: list[str]) -> tuple[Image.Image, list[str]]:
    """Picture in mode L or RGB; `done` with the conversions."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise Unsuitable(f"expected 8 or 16 bits per channel, found 32 (mode {image.mode})")
    grey = image.mode in ("1", "L", "LA", "La")
    if image.mode in ("P", "PA"):
        done.append("palette to colours")
    elif image.mode not in ("1", "L", "LA", "La", "RGB", "RGBA", "RGBa", "RGBX"):
        done.append(f"{image.mode} to RGB")
    if image.has_transparency_data:
        over = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
        done.append("transparency over white")
    if not grey or image.mode not in ("1", "L"):
        image = image.convert("RGB")
    if grey and channels == 3:
        done.append("grey to colour")
    elif not grey and channels == 1:
        done.append("colour to grey")
    return image.convert("L" if channels == 1 else "RGB"), done


def resize_and_crop(image: Image.Image, side: int) -> Decoded:
    """Resize the shorter side of a picture to `side`, then crop the centre to `side`×`side`.

    Raises:
        Unsuitable: the picture is smaller.
    """
    width, height = image.size
    shorter, done = min(image.size), []
    if shorter < side:
        raise Unsuitable(f"expected at least {side}×{side} pixels, found {width}×{height}")
    if shorter > side:
        width, height = side * width // shorter, side * height // shorter
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        done.append("made smaller")
    if width != height:
        left, top = round((width - side) / 2), round((height - side) / 2)
        image = image.crop((left, top, left + side, top + side))
        done.append("centre cut out")
    return to_array(image), done


def read_resized(file: IO[bytes], channels: int, side: int) -> Decoded:
    """Read the picture in a file and resize it to `side`×`side`; raises `Unsuitable` like both steps."""
    image, done = read_picture(file, channels)
    pixels, more = resize_and_crop(image, side)
    return pixels, done + more


def to_array(image: Image.Image) -> NDArray[np.uint8]:
    """Array (H, W, C) of a picture in mode L or RGB."""
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array
