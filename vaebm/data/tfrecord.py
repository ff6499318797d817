"""TFRecord files of images, read without TensorFlow.

A record is its length (8 bytes, little-endian), the masked CRC-32C of these, that many bytes, and their masked CRC-32C. Its bytes
are an `Example` in Protocol Buffers: a map from names to lists of bytes or of integers. An image has the features `shape`, three
integers, and `data`, its bytes.
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
"""Of CRC-32C (Castagnoli), its bits reversed."""

LANE = 512
"""Bytes of a checksum that are taken one after the other; lanes are taken at once."""


class Record(NamedTuple):
    """Where the bytes of a record stand."""

    path: Path
    start: int
    length: int


def records(path: Path) -> list[Record]:
    """All records of a file.

    Raises:
        UserError: the file is cut off, damaged, or another kind of file.
    """
    found: list[Record] = []
    end = path.stat().st_size
    with path.open("rb") as file:
        while (start := file.tell()) < end:
            header = file.read(12)
            length = int.from_bytes(header[:8], "little")
            whole = len(header) == 12 and int.from_bytes(header[8:], "little") == masked(crc32c(header[:8]))
            if not whole or start + 16 + length > end:
                raise UserError(
                    f"{path}: expected whole TFRecords, found damage at byte {start:,} (record {len(found)}); get the file anew"
                )
            found.append(Record(path, start + 12, length))
            file.seek(start + 16 + length)
    return found


def read_image(record: Record) -> NDArray[np.uint8]:
    """The image (H, W, 3) of a record, whose `shape` is (H, W, 3) or (3, H, W).

    Raises:
        Unsuitable: its bytes are damaged, or are not those of an image.
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
    """Name → kind of list (1: bytes, 3: integers) → its values, of an `Example`."""
    for number, features in _fields(content):
        for entry in (value for key, value in _fields(features) if number == key == 1):
            parts = dict(_fields(entry))
            kinds = {kind: [value for key, value in _fields(values) if key == 1] for kind, values in _fields(parts[2])}
            yield parts[1].decode(), kinds


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and content of each field of a message; an integer as the bytes that it is written in."""
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
    """An integer in groups of seven bits, lowest first, and where it ends."""
    value = shift = 0
    while True:
        value |= (message[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if message[at - 1] < 128:
            return value, at


def _integers(packed: bytes) -> Iterator[int]:
    at = 0
    while at < len(packed):
        value, at = _varint(packed, at)
        yield value


def masked(checksum: int) -> int:
    """A checksum as TFRecords keep it, so that checksums of checksums stay useful."""
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


@cache
def _table() -> NDArray[np.uint32]:
    """Byte → what it does to the register when it is shifted out."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ POLYNOMIAL, table >> 1).astype(np.uint32)
    return table


@cache
def _past_a_lane() -> list[list[int]]:
    """Four tables: byte k of a register → the register after a lane of zeros. Registers add up by XOR, so their bytes do."""
    register = np.arange(256, dtype=np.uint32) << (8 * np.arange(4, dtype=np.uint32))[:, None]
    for _ in range(LANE):
        register = register >> 8 ^ _table()[register & 255]
    return register.tolist()


def crc32c(content: bytes) -> int:
    """CRC-32C of some bytes: cut into lanes whose bytes are taken side by side, then one lane after the other is joined.

    The register starts as all ones, which is the same as zero before bytes of which the first four are inverted; and zeros in
    front, which fill up the first lane, leave a register of zero as it is.
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
    zeroth, first, second, third = _past_a_lane()
    whole = 0
    for register in registers.tolist():
        whole = (
            zeroth[whole & 255] ^ first[whole >> 8 & 255] ^ second[whole >> 16 & 255] ^ third[whole >> 24] ^ register
        )
    return whole ^ 0xFFFFFFFF
