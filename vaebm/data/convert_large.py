"""Data sets larger than memory: pictures converted in parallel, piece by piece, into images.npy; a run that was cut off goes on.

Pillow and zlib release Python's lock while they work, so the parallel workers are threads: they share open archives, and
nothing has to be sent between processes.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaebm.config import fingerprint
from vaebm.data.decode import Converted, Unsuitable
from vaebm.data.download import shown
from vaebm.data.prepared import describe_images
from vaebm.system.device import Progress
from vaebm.system.errors import UserError

PIECE = 8 << 20
"""Bytes of images that are written, synced and noted at once."""

SHOWN = 3
"""Refused pictures that an error names."""


@dataclass(frozen=True)
class Pictures:
    """A data set whose images are read one by one.

    Attributes:
        shape: (H, W, C) of an image.
        labels: (N,), in the order of the prepared images.
        splits: name of a split → (first, last + 1).
        source: where it came from, for the manifest. It has to change with the raw files: a run that was cut off goes on only
            where it is the same.
        read: number of an image → the image, and what was done to the picture; raises `Unsuitable`. Called from several threads.
        name: number of an image → what an error calls it.
    """

    shape: tuple[int, int, int]
    labels: NDArray[np.int64]
    splits: dict[str, tuple[int, int]]
    source: dict[str, Any]
    read: Callable[[int], Converted]
    name: Callable[[int], str]


def write_pictures(folder: Path, name: str, made: Pictures, threads: int) -> None:
    """Write a prepared data set from single pictures, as `write_images` writes one from an array.

    Finished pieces are noted in a journal beside the file, with their counts, once their bytes are on the disk.

    Args:
        threads: pictures that are converted at once.

    Raises:
        UserError: pictures that are refused, all of them counted and some named; or the files cannot be written.
    """
    partial, journal = folder / ".images.npy.partial", folder / ".images.npy.journal"
    size = int(np.prod(made.shape))
    pieces = [
        range(first, min(first + max(PIECE // size, 1), len(made.labels)))
        for first in range(0, len(made.labels), max(PIECE // size, 1))
    ]
    key = fingerprint({"name": name, "shape": made.shape, "splits": made.splits, "source": made.source})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        done = _noted(journal, key) if partial.is_file() else {}
        with partial.open("r+b" if done else "w+b") as file, journal.open("w") as notes:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(made.labels), *made.shape)}
            np.lib.format.write_array_header_1_0(file, header)
            file.flush()
            start = file.tell()
            os.truncate(file.fileno(), start + len(made.labels) * size)
            notes.writelines(json.dumps(line) + "\n" for line in (key, *done.items()))
            notes.flush()
            done |= _convert(
                file.fileno(), start, made, [piece for piece in pieces if piece.start not in done], threads, notes, name
            )
            os.fsync(file.fileno())
        partial.replace(folder / "images.npy")
        counts = sum(done.values(), Counter())
        converted = {"converted": dict(sorted(counts.items()))} if counts else {}
        describe_images(
            folder, name, (len(made.labels), *made.shape), made.labels, made.splits, {**made.source, **converted}
        )
        journal.unlink()
    except OSError as error:
        raise UserError(
            f"{folder / 'images.npy'}: cannot be written: {error.strerror or error}; choose another place, or make room there"
        ) from None


def _noted(journal: Path, key: str) -> dict[int, Counter[str]]:
    """First image of each finished piece → what was done in it; empty where the journal is another data set's, or none is there."""
    try:
        first, *lines = journal.read_text().splitlines()
        if json.loads(first) != key:
            return {}
        done = {}
        for line in lines:
            if line.endswith("]"):  # the last line of a killed process may be cut
                piece, counts = json.loads(line)
                done[piece] = Counter(counts)
    except (OSError, ValueError):
        return {}
    return done


def _convert(
    descriptor: int, start: int, made: Pictures, pieces: list[range], threads: int, notes: Any, name: str
) -> dict[int, Counter[str]]:
    """Convert and write `pieces`; what was done in each. Refused pictures are gathered, so that one error tells of all of them."""
    size = int(np.prod(made.shape))

    def convert(piece: range) -> tuple[range, Counter[str], list[str]]:
        images = np.zeros((len(piece), *made.shape), np.uint8)
        counts: Counter[str] = Counter()
        refused = []
        for row, number in enumerate(piece):
            try:
                images[row], done = made.read(number)
                counts.update(done)
            except Unsuitable as reason:
                refused.append(f"{shown(made.name(number))}: {reason}")
            except OSError as error:  # said of the picture, not of the file that is written
                refused.append(f"{shown(made.name(number))}: cannot be read: {error.strerror or error}")
        if not refused:
            rest, at = memoryview(images.tobytes()), start + piece.start * size
            while rest:  # a call may write a part alone
                written = os.pwrite(descriptor, rest, at)
                rest, at = rest[written:], at + written
            os.fsync(descriptor)
        return piece, counts, refused

    finished: dict[int, Counter[str]] = {}
    problems: dict[int, list[str]] = {}
    left = sum(map(len, pieces))
    progress = Progress(f"data {name}", len(made.labels), start=len(made.labels) - left, unit="image")
    with ThreadPoolExecutor(threads) as pool:
        waiting = [pool.submit(convert, piece) for piece in pieces]
        try:
            for future in waiting:  # in their order, so that what a stopped run has noted is a beginning of the images
                piece, counts, refused = future.result()
                if refused:
                    problems[piece.start] = refused
                else:
                    finished[piece.start] = counts
                    notes.write(json.dumps([piece.start, counts]) + "\n")
                    notes.flush()
                progress.advance(steps=len(piece))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            progress.close()
    if all_refused := [line for first in sorted(problems) for line in problems[first]]:
        more = f"; and {len(all_refused) - SHOWN:,} more" if len(all_refused) > SHOWN else ""
        raise UserError(
            f"{'; '.join(all_refused[:SHOWN])}{more}: of {len(made.labels):,} pictures {len(all_refused):,} cannot be used; replace or remove them"
        )
    return finished
