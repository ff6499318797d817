"""TFRecord files of images, read without TensorFlow.

A record consists of its length (8 bytes, little-endian), the masked CRC-32C of the length, the content, and its masked
CRC-32C. The content is an `Example` in Protocol Buffers: a map from names to lists of bytes or of integers. An image
has the features `shape`, three integers, and `data`, its bytes.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vaebm.data.decode import Unsuitable
from vaebm.system.errors import UserError, brief


class TFRecord(NamedTuple):
    """Position of a record's content; as text its name in errors."""

    path: Path
    start: int
    length: int

    def __str__(self) -> str:
        return f"{self.path}: record at byte {self.start - 12:,}"


def records(path: Path) -> list[TFRecord]:
    """All records of a file.

    Raises:
        UserError: the file is truncated, damaged, or not of this format.
    """
    found: list[TFRecord] = []
    end = path.stat().st_size
    with path.open("rb") as file:
        while (start := file.tell()) < end:
            header = file.read(12)
            length = int.from_bytes(header[:8], "little")
            whole = len(header) == 12 and int.from_bytes(header[8:], "little") == masked_crc32c(header[:8])
            if start == 0 and (header[:2] == b"\x1f\x8b" or header[:1] == b"\x78" and not whole):
                raise UserError(
                    f"{path}: expected plain TFRecords, found compressed ones; unpack the file (gzip, zlib)"
                )
            if not whole or start + 16 + length > end:
                damage = f"found damage at byte {start:,} (record {len(found)})"
                raise UserError(f"{path}: expected whole TFRecords, {damage}; get the file anew")
            found.append(TFRecord(path, start + 12, length))
            file.seek(start + 16 + length)
    return found


def read_image(record: TFRecord) -> NDArray[np.uint8]:
    """Image (H, W, 3) of a record with `shape` (H, W, 3) or (3, H, W).

    Raises:
        Unsuitable: the content is damaged, or not an image.
    """
    from tfrecord.example_pb2 import Example

    with record.path.open("rb") as file:
        file.seek(record.start)
        content, checksum = file.read(record.length), file.read(4)
    if int.from_bytes(checksum, "little") != masked_crc32c(content):
        raise Unsuitable("expected a whole record, found another checksum")
    try:
        features = Example.FromString(content).features.feature
        (data,), shape = features["data"].bytes_list.value, list(features["shape"].int64_list.value)
    except Exception:  # of a damaged message, or one of other features
        raise Unsuitable("expected the features shape and data, found others") from None
    if len(shape) != 3 or 3 not in (shape[0], shape[2]) or min(shape) < 1 or math.prod(shape) != len(data):
        raise Unsuitable(f"expected a colour image, found {len(data):,} bytes of shape {brief(shape)}")
    image = np.frombuffer(data, np.uint8).reshape(shape)
    return image if shape[2] == 3 else image.transpose(1, 2, 0)


def masked_crc32c(content: bytes) -> int:
    """Masked CRC-32C, as stored in TFRecords."""
    from crc32c import crc32c  # a dependency of tfrecord

    checksum: int = crc32c(content)
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
