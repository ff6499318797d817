"""Pictures that Pillow accepts but misreads: the right pixels, or a refusal that names the kind."""

from __future__ import annotations

import io
import itertools
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from tiff_files import DEFLATE, NONE, write_tiff

from vaebm.data.decode import Unsuitable, read_picture

DATA = Path(__file__).parent / "data"
RANDOM = np.random.RandomState(0)
CHANNELS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}
"""Photometric interpretation of a TIFF → channels without extra ones."""
EXTRA = [(), (0,), (1,), (2,), (0, 0), (2, 0)]
"""Extra channels: 0 unspecified, 1 associated alpha, 2 alpha."""


def become(content: bytes, channels: int = 3) -> tuple[np.ndarray, list[str]]:
    image, done = read_picture(io.BytesIO(content), channels)
    return np.asarray(image), done


def colours(
    samples: np.ndarray, bits: int, photometric: int, extra: tuple[int, ...], palette: np.ndarray
) -> np.ndarray:
    """RGB (H, W, 3) over white of the samples of a TIFF, by its specification."""

    def grey(values: np.ndarray) -> np.ndarray:
        return values >> 8 if bits == 16 else values * 255 // ((1 << bits) - 1)

    count = CHANNELS[photometric]
    values = grey(samples[..., :count]).astype(np.uint8)
    if photometric in (0, 1):
        found = np.repeat(values if photometric else 255 - values, 3, -1)
    elif photometric == 3:
        found = palette[samples[..., 0]]
    elif photometric == 8:
        bands = [Image.fromarray(band) for band in np.moveaxis(values ^ np.array([0, 128, 128], np.uint8), -1, 0)]
        found = np.asarray(Image.merge("LAB", bands).convert("RGB"))
    else:
        mode = {2: "RGB", 5: "CMYK", 6: "YCbCr"}[photometric]
        found = np.asarray(Image.frombytes(mode, samples.shape[1::-1], values.tobytes()).convert("RGB"))
    if extra and extra[0]:
        alpha = grey(samples[..., [count]]) / 255
        found = (found * alpha if extra[0] == 2 else found) + 255 * (1 - alpha)
    return found


@pytest.mark.parametrize("photometric", CHANNELS)
def test_tiff_of_every_kind_is_right_or_refused(photometric: int) -> None:
    """All combinations of bits, extra channels, byte order, planes, compression and predictor."""
    right = 0
    for bits, extra, order, planar, compression, predictor, layout in itertools.product(
        (1, 2, 4, 8, 12, 16, 32), EXTRA, "<>", (1, 2), (NONE, DEFLATE), (1, 2), ({}, {"rows": 4}, {"tile": 16})
    ):
        if layout and bits not in (8, 16):
            continue
        if predictor == 2 and (layout or compression == NONE or bits not in (8, 16)):
            continue
        count = CHANNELS[photometric]
        samples = RANDOM.randint(0, 1 << bits, (19, 21, count + len(extra)))
        if extra == (1,):  # colours multiplied by alpha
            samples[..., :count] = samples[..., :count] * samples[..., [count]] // ((1 << bits) - 1)
        palette, tags = np.zeros((0, 3), int), {"t530": (1, 1)} if photometric == 6 else {}
        if photometric == 3 and bits <= 8:
            palette = RANDOM.randint(0, 256, (1 << bits, 3))
            tags["t320"] = tuple((palette * 257).T.reshape(-1).tolist())
        stored = samples
        if predictor == 2:
            stored, tags["t317"] = np.diff(samples, axis=1, prepend=0) % (1 << bits), 2
        content = write_tiff(
            stored,
            bits,
            photometric,
            order=order,
            planar=planar,
            compression=compression,
            extra=extra,
            **layout,
            **tags,
        )
        try:
            found, _ = become(content)
        except Unsuitable:
            continue
        expected = colours(samples, bits, photometric, extra, palette)
        kind = (bits, extra, order, planar, compression, predictor, layout)
        assert np.abs(found - expected).max() <= (3 if extra else 1), kind
        right += 1
    assert right >= 6


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"bits": 12, "photometric": 1}, "expected 8 or 16 bits per channel, found 12"),
        ({"bits": 16, "photometric": 0}, r"found a TIFF from white to black \(tag 262\)"),
        ({"bits": 16, "photometric": 2, "planar": 2}, r"found uncompressed planes of 16 bits \(tag 284\)"),
        ({"bits": 8, "photometric": 1, "t339": 2}, r"expected unsigned integers, .* \(tag 339\)"),
        ({"bits": 8, "photometric": 6, "t530": (2, 2)}, r"found an uncompressed TIFF .* \(tag 530\)"),
        ({"bits": 8, "photometric": 8, "planar": 2, "compression": DEFLATE}, r"found compressed planes .* \(tag 284\)"),
    ],
)
def test_tiff_is_refused_by_name(tags: dict[str, int], message: str) -> None:
    samples = RANDOM.randint(0, 200, (8, 8, CHANNELS[tags["photometric"]]))
    with pytest.raises(Unsuitable, match=message):
        become(write_tiff(samples, **tags))


def png(values: np.ndarray, bits: int, key: tuple[int, ...], more: bytes = b"") -> bytes:
    """A grey or RGB PNG of `bits` with a transparent colour."""
    colour = 2 if values.ndim == 3 else 0
    rows = b""
    for row in values:
        each = (row.reshape(-1).astype(np.uint32)[:, None] >> np.arange(bits - 1, -1, -1)) & 1
        rows += b"\0" + np.packbits(each.reshape(-1).astype(np.uint8)).tobytes()
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour, 0, 0, 0)
    chunks = [
        (b"IHDR", header),
        (b"tRNS", struct.pack(f">{len(key)}H", *key)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    return (
        b"\x89PNG\r\n\x1a\n"
        + more
        + b"".join(
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
            for kind, body in chunks
        )
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("small", [False, True])
def test_colour_key_is_compared_in_the_depth_of_the_file(bits: int, small: bool) -> None:
    """Values that are equal in their upper 8 bits only are opaque."""
    most = min(3, (1 << bits) - 1) if small else (1 << bits) - 1
    grey = RANDOM.randint(0, most + 1, (9, 10))
    grey[2:5, 3] = most
    level = grey >> 8 if bits == 16 else grey * 255 // ((1 << bits) - 1)
    found, done = become(png(grey, bits, (most,)), 1)
    assert np.array_equal(found, np.where(grey == most, 255, level)) and "transparency over white" in done
    if bits >= 8:
        colour = RANDOM.randint(0, most + 1, (9, 10, 3))
        colour[2:5, 3] = (most, 0, most // 2)
        level = colour >> 8 if bits == 16 else colour
        clear = (colour == (most, 0, most // 2)).all(-1)
        found, done = become(png(colour, bits, (most, 0, most // 2)))
        assert np.array_equal(found, np.where(clear[..., None], 255, level)) and "transparency over white" in done


def test_recorded_pictures_with_a_key_of_16_bits() -> None:
    for name in ("grey16_trns.png", "rgb16_trns_small.png"):
        found, _ = become((DATA / name).read_bytes())
        assert (found == 255).all(-1).any() and not (found == 255).all(-1).all(), name


def test_turned_picture_with_a_key_is_upright() -> None:
    values = np.arange(12).reshape(3, 4) * 5000
    image = Image.fromarray(values.astype(np.uint16))
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    image.save(file, "PNG", exif=exif, transparency=5000)
    found, done = become(file.getvalue(), 1)
    expected = np.where(values == 5000, 255, values >> 8)
    assert np.array_equal(found, np.rot90(expected, -1)) and "turned upright" in done


def test_damaged_png_is_refused() -> None:
    with pytest.raises(Unsuitable, match="damaged PNG"):
        become((DATA / "zero_tail.png").read_bytes())
    file = io.BytesIO()
    Image.fromarray(RANDOM.randint(0, 256, (40, 40, 3)).astype(np.uint8)).save(file, "PNG", compress_level=0)
    content = bytearray(file.getvalue())
    become(bytes(content))
    for at in range(60, len(content), 97):  # any byte of the pixels
        damaged = content.copy()
        damaged[at] ^= 1
        with pytest.raises(Unsuitable):
            become(bytes(damaged))
    with pytest.raises(Unsuitable):
        become(bytes(content[:-12]))  # without its end


def test_jpeg_cut_off_before_an_end_marker_cannot_be_told() -> None:
    """As docs/reference/datasets.md says."""
    assert become((DATA / "cut_half_eoi.jpg").read_bytes())[0].shape == (256, 256, 3)


def test_any_exception_of_pillow_names_a_damaged_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unsuitable, match="damaged one"):
        become((DATA / "overflow_palette.tif").read_bytes())
    good = png(np.zeros((4, 4), int), 8, (1,))
    for kind in (OverflowError, MemoryError, AssertionError, RecursionError, AttributeError, ZeroDivisionError):

        def broken(self: object, kind: type[Exception] = kind) -> None:
            raise kind("one\ntwo" + "x" * 5000)

        monkeypatch.setattr(PngImagePlugin.PngImageFile, "load_prepare", broken)
        with pytest.raises(Unsuitable) as error:
            become(good)
        assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_long_text_in_a_png_is_named() -> None:
    info, file = PngImagePlugin.PngInfo(), io.BytesIO()
    info.add_text("comment", "a" * 2_000_000, zip=True)
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    with pytest.raises(Unsuitable, match="expected at most 1 MiB of text in a PNG"):
        become(file.getvalue())


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG", "WEBP"])
def test_orientations_that_turn_are_counted(kind: str) -> None:
    blocks = np.zeros((16, 32, 3), np.uint8)
    blocks[:8, :16] = 255
    for orientation, turned in ((0, False), (1, False), (9, False), (3, True), (6, True)):
        exif, file = Image.Exif(), io.BytesIO()
        exif[0x0112] = orientation
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.fromarray(blocks).save(file, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
            found, done = become(file.getvalue())
        expected = {3: np.rot90(blocks, 2), 6: np.rot90(blocks, -1)}.get(orientation, blocks)
        assert ("turned upright" in done) == turned, orientation
        assert found.shape == expected.shape and np.abs(found.astype(int) - expected).mean() < 3
