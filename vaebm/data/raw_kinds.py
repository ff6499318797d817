"""Kinds of PNG and TIFF that Pillow accepts but does not decode right, or not to the end.

Pillow's mode does not say how the file stores its values; the file's header and tags do.
"""

from collections.abc import Mapping
from typing import IO, Any

import numpy as np
from PIL import Image

_WHITE_IS_ZERO, _GREY, _COLOUR, _PALETTE, _CMYK, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8
"""Values of a TIFF's tag PhotometricInterpretation (262)."""

_UNCOMPRESSED_PLANES = {(_GREY, 1), (_GREY, 8), (_COLOUR, 8), (_PALETTE, 8), (_CMYK, 8)}
"""Photometric interpretations and bits for which Pillow reads uncompressed separate planes right."""


class Unsuitable(ValueError):
    """Refused picture: expected and found."""


def check_tiff(tags: Mapping[int, Any]) -> None:
    """Check that Pillow decodes a TIFF with these tags to its values (compared by a test for every combination).

    Raises:
        Unsuitable: it does not, or that is not known.
    """
    bits, formats = set(tags.get(258, (1,))), set(tags.get(339, (1,)))
    if len(bits) != 1 or not bits <= {1, 2, 4, 8, 16}:
        raise Unsuitable(f"expected 8 or 16 bits per channel, found {', '.join(map(str, sorted(bits)[:3]))}")
    if formats != {1}:
        raise Unsuitable("expected unsigned integers, found a TIFF of another sample format (tag 339)")
    photometric, planes, (depth,) = tags.get(262, 0), tags.get(284, 1), bits
    extra, raw = tags.get(338, ()), tags.get(259, 1) == 1
    if photometric not in (_WHITE_IS_ZERO, _GREY, _COLOUR, _PALETTE, _CMYK, _YCBCR, _LAB) or planes not in (1, 2):
        raise Unsuitable(f"expected grey, colours or CMYK, found a TIFF of kind {photometric} (tags 262 and 284)")
    if photometric == _WHITE_IS_ZERO and depth == 16:
        raise Unsuitable("expected 16 bits from black to white, found a TIFF from white to black (tag 262)")
    if photometric == _YCBCR and raw and tuple(tags.get(530, (1, 1))) != (1, 1):
        raise Unsuitable(
            "expected whole or compressed colours, found an uncompressed TIFF with fewer of them (tag 530)"
        )
    known = (
        (photometric, depth) in _UNCOMPRESSED_PLANES and tags.get(266, 1) == 1
        if raw
        else photometric != _LAB and (photometric in (_COLOUR, _CMYK, _YCBCR) or not any(extra))
    )
    if planes == 2 and not known:
        how = "uncompressed" if raw else "compressed"
        raise Unsuitable(f"expected a TIFF of interleaved channels, found {how} planes of {depth} bits (tag 284)")


def check_png(file: IO[bytes]) -> None:
    """Compare a PNG with its checksums; Pillow decodes without a look at them.

    Raises:
        Unsuitable: they differ, or the end is missing.
    """
    file.seek(0)
    try:
        with Image.open(file, formats=["PNG"]) as again:
            again.verify()
    except Exception as error:  # as for damaged pictures
        raise Unsuitable(f"expected a whole picture, found a damaged PNG ({str(error)[:80]!r})") from None


def key_to_alpha(file: IO[bytes], opened: Image.Image, key: Any) -> Image.Image:
    """Loaded PNG with an alpha channel for its transparent colour (chunk tRNS), in 8 bits.

    Args:
        key: the grey level or the colour, in the file's own depth. Pillow compares it with values of another one.
    """
    file.seek(24)
    bits, found = file.read(1)[0], np.asarray(opened)
    if bits == 1:  # Pillow scales the key too
        key = int(key > 0)
    elif bits < 8:
        found = found // (255 // ((1 << bits) - 1))
    elif bits == 16 and opened.mode == "RGB":
        file.seek(0)
        with Image.open(file, formats=["PNG"]) as low:  # Pillow keeps the upper bytes; of the other order, the lower
            low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
            found = found.astype(np.int64) << 8 | np.asarray(low)
    equal = found == np.asarray(key) % (1 << bits)
    alpha = np.where(equal.all(-1) if found.ndim == 3 else equal, 0, 255).astype(np.uint8)
    if opened.mode.startswith("I;16"):
        pixels = Image.fromarray((found >> 8).astype(np.uint8))
    else:
        pixels = opened.convert("RGB" if opened.mode == "RGB" else "L")
    pixels.info = {name: value for name, value in opened.info.items() if name != "transparency"}
    pixels.putalpha(Image.fromarray(alpha))
    return pixels
