"""A writer of TIFF files of any kind, independent of Pillow and libtiff."""

from __future__ import annotations

import struct
import zlib

import numpy as np

NONE, DEFLATE = 1, 8
"""Compressions."""


def write_tiff(
    samples: np.ndarray,
    bits: int,
    photometric: int,
    *,
    order: str = "<",
    planar: int = 1,
    compression: int = NONE,
    extra: tuple[int, ...] = (),
    rows: int | None = None,
    tile: int | None = None,
    **tags: int | tuple[int, ...],
) -> bytes:
    """A TIFF of `samples` (H, W, S), each of `bits` bits.

    Args:
        rows: of a strip; by default all.
        tile: side of its tiles, a multiple of 16; by default it has strips.
        order: `<` for little-endian files, `>` for big-endian ones.
        tags: further tags, `t339=1`.
    """
    height, width, count = samples.shape
    planes = [samples] if planar == 1 else [samples[..., [number]] for number in range(count)]
    tall, wide = tile or rows or height, tile or width
    parts = [
        plane[top : top + tall, left : left + wide]
        for plane in planes
        for top in range(0, height, tall)
        for left in range(0, width, wide)
    ]
    if tile:
        parts = [np.pad(part, ((0, tall - len(part)), (0, wide - part.shape[1]), (0, 0))) for part in parts]
    strips = [b"".join(_row(row.reshape(-1), bits, order) for row in part) for part in parts]
    if compression == DEFLATE:
        strips = [zlib.compress(strip) for strip in strips]
    entries: dict[int, tuple[int, ...]] = {
        256: (width,),
        257: (height,),
        258: (bits,) * count,
        259: (compression,),
        262: (photometric,),
        277: (count,),
        **({322: (tile,), 323: (tile,)} if tile else {278: (tall,)}),
        284: (planar,),
    }
    if extra:
        entries[338] = extra
    entries |= {int(name[1:]): (value,) if isinstance(value, int) else value for name, value in tags.items()}
    start = 8
    offsets = [start + sum(map(len, strips[:number])) for number in range(len(strips))]
    places, sizes = (324, 325) if tile else (273, 279)
    entries |= {places: tuple(offsets), sizes: tuple(map(len, strips))}
    data = b"".join(strips) + b"\0" * (sum(map(len, strips)) % 2)
    place = start + len(data)
    more, fields, after = b"", b"", place + 2 + 12 * len(entries) + 4
    for tag, values in sorted(entries.items()):
        kind, form = (4, "I") if tag in (places, sizes) else (3, "H")
        content = struct.pack(f"{order}{len(values)}{form}", *values)
        if len(content) > 4:
            more, content = more + content, struct.pack(f"{order}I", after + len(more))
        fields += struct.pack(f"{order}HHI", tag, kind, len(values)) + content.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", place)
    return head + data + struct.pack(f"{order}H", len(entries)) + fields + b"\0\0\0\0" + more


def _row(values: np.ndarray, bits: int, order: str) -> bytes:
    """A row of samples, packed."""
    if bits % 8 == 0:
        return values.astype(f"{order}u{bits // 8}").tobytes()
    each = (values.astype(np.uint32)[:, None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(each.reshape(-1).astype(np.uint8)).tobytes()
