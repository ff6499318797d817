"""TFRecord files of images, read without TensorFlow.

A record consists of its length (8 bytes, little-endian), the masked CRC-32C of the length, the content, and its masked
CRC-32C. The content is an `Example` in Protocol Buffers: a map from names to lists of bytes or of integers. An image
has the features `shape`, three integers, and `data`, its bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vaebm.data.decode import Unsuitable
from vaebm.system.errors import UserError

POLYNOMIAL = 0x82F63B78
"""Polynomial of CRC-32C (Castagnoli), bits reversed."""

LANE = 512
"""Bytes per lane; the lanes of a checksum are computed in parallel."""


class TFRecord(NamedTuple):
    """Position of a record's content."""

    path: Path
    start: int
    length: int


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
            whole = len(header) == 12 and int.from_bytes(header[8:], "little") == masked(crc32c(header[:8]))
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
    with record.path.open("rb") as file:
        file.seek(record.start)
        content, checksum = file.read(record.length), file.read(4)
    if len(content) < 4:
        raise Unsuitable(f"expected an image, found a record of {len(content)} bytes")
    if int.from_bytes(checksum, "little") != masked(crc32c(content)):
        raise Unsuitable("expected a whole record, found another checksum")
    try:
        features = dict(_features(content))
        (data,) = features["data"][1]
        shape = [number for packed in features["shape"][3] for number in _integers(packed)]
    except (KeyError, ValueError, IndexError, TypeError, struct.error):
        raise Unsuitable("expected the features shape and data, found others") from None
    if len(shape) != 3 or 3 not in (shape[0], shape[2]) or np.prod(shape) != len(data):
        raise Unsuitable(f"expected a colour image, found {len(data):,} bytes of shape {shape}")
    image = np.frombuffer(data, np.uint8).reshape(shape)
    return image if shape[2] == 3 else image.transpose(1, 2, 0)


def _features(content: bytes) -> Iterator[tuple[str, dict[int, list[bytes]]]]:
    """Features of an `Example`: name, and kind of list (1: bytes, 3: integers) → values."""
    for number, features in _fields(content):
        for entry in (value for key, value in _fields(features) if number == key == 1):
            parts = dict(_fields(entry))
            kinds = {kind: [value for key, value in _fields(values) if key == 1] for kind, values in _fields(parts[2])}
            yield parts[1].decode(), kinds


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and content of each field of a message; integers as encoded bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        start = at
        if key & 7 == 0:
            _, at = _varint(message, at)
        elif key & 7 == 2:
            length, start = _varint(message, at)
            at = start + length
        else:
            at += {1: 8, 5: 4}[key & 7]
        if at > len(message):
            raise ValueError("a field that is longer than its message")
        yield key >> 3, message[start:at]


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Integer at position `at`, in groups of seven bits, lowest first; and its end."""
    value = shift = 0
    while True:
        value |= (message[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if message[at - 1] < 128:
            return value, at


def _integers(packed: bytes) -> Iterator[int]:
    """All integers of a packed list."""
    at = 0
    while at < len(packed):
        value, at = _varint(packed, at)
        yield value


def masked(checksum: int) -> int:
    """Masked checksum, as stored in TFRecords."""
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


@cache
def _table() -> NDArray[np.uint32]:
    """Byte → its effect on the register when it is shifted out."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ POLYNOMIAL, table >> 1).astype(np.uint32)
    return table


@cache
def _shift_by_lane() -> list[list[int]]:
    """Four tables: byte k of a register → register after a lane of zeros; their XOR is that of the register."""
    register = np.arange(256, dtype=np.uint32) << (8 * np.arange(4, dtype=np.uint32))[:, None]
    for _ in range(LANE):
        register = register >> 8 ^ _table()[register & 255]
    return register.tolist()


def crc32c(content: bytes) -> int:
    """CRC-32C: registers of all lanes in parallel, then combined lane by lane.

    A register of ones at the start equals a register of zero with the first four bytes inverted. So zeros that fill the
    first lane in front do not change the register.
    """
    if len(content) < 4:
        raise ValueError("a checksum of fewer than four bytes")
    lanes = -(-len(content) // LANE)
    filled = np.zeros(lanes * LANE, np.uint32)
    own = filled[-len(content) :]
    own[:] = np.frombuffer(content, np.uint8)
    own[:4] ^= 255
    table, registers = _table(), np.zeros(lanes, np.uint32)
    for column in np.ascontiguousarray(filled.reshape(lanes, LANE).T):
        registers = registers >> 8 ^ table[(registers ^ column) & 255]
    zeroth, first, second, third = _shift_by_lane()
    whole = 0
    for register in registers.tolist():
        whole = (
            zeroth[whole & 255] ^ first[whole >> 8 & 255] ^ second[whole >> 16 & 255] ^ third[whole >> 24] ^ register
        )
    return whole ^ 0xFFFFFFFF
