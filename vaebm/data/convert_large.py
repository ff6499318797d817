"""Data sets larger than memory: pictures converted in parallel, piece by piece, into images.npy, with resume.

The workers are threads, which share open archives: Pillow and zlib release the GIL.
"""

import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaebm.config import fingerprint
from vaebm.data.decode import Decoded, Unsuitable
from vaebm.data.download import shown
from vaebm.data.prepared import describe_images
from vaebm.system.child import reading
from vaebm.system.device import Progress
from vaebm.system.errors import UserError, brief

PIECE = 8 << 20
"""Bytes of images per piece, the unit of writing, syncing and resuming."""

SHOWN = 3
"""Refused pictures named in an error."""


@dataclass(frozen=True)
class LazyImages:
    """Data set whose images are read one by one.

    Attributes:
        shape: (H, W, C) of an image.
        parts: name of a split → its images as `read` takes them, for example paths; as text their names in errors.
        source: origin, for the manifest. It has to change with the raw files: a run resumes only where it is equal.
        read: image in `parts` → array and conversions; raises `Unsuitable`. Called from several threads.
        labels: (N,), in the order of the parts; None: all are 0.
    """

    shape: tuple[int, int, int]
    parts: Mapping[str, Sequence[Any]]
    source: dict[str, Any]
    read: Callable[[Any], Decoded]
    labels: NDArray[np.int64] | None = None


def write_lazy_images(folder: Path, name: str, data: LazyImages, threads: int) -> None:
    """Write a prepared data set from single pictures.

    A journal next to the file records each finished piece, with counts of conversions, once its bytes are on the disk.

    Args:
        threads: pictures converted at once.

    Raises:
        UserError: some pictures are refused (all are counted, some named), or the files cannot be written.
    """
    partial, journal = folder / ".images.npy.partial", folder / ".images.npy.journal"
    images = [image for part in data.parts.values() for image in part]
    splits = dict(zip(data.parts, pairwise(accumulate(map(len, data.parts.values()), initial=0)), strict=True))
    shape = (len(images), *data.shape)
    length = max(PIECE // math.prod(data.shape), 1)
    pieces = [range(first, min(first + length, shape[0])) for first in range(0, shape[0], length)]
    key = fingerprint({"name": name, "shape": data.shape, "splits": splits, "source": data.source})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        done = _finished(journal, key) if partial.is_file() else {}
        start = np.lib.format.open_memmap(partial, "r+" if done else "w+", np.uint8, shape).offset
        with partial.open("r+b") as file, journal.open("w", encoding="utf-8") as notes:
            notes.writelines(json.dumps(line) + "\n" for line in (key, *done.items()))
            notes.flush()
            missing = [piece for piece in pieces if piece.start not in done]
            done |= _convert(file.fileno(), start, data, images, missing, threads, notes, name)
            os.fsync(file.fileno())
        partial.replace(folder / "images.npy")
        counts = sum(done.values(), Counter())
        converted = {"converted": dict(sorted(counts.items()))} if counts else {}
        labels = np.zeros(len(images), np.int64) if data.labels is None else data.labels
        describe_images(folder, name, labels, splits, {**data.source, **converted})
        journal.unlink()
    except OSError as error:
        raise UserError(
            f"{folder / 'images.npy'}: cannot be written: {error.strerror or error}; "
            "choose another place, or make room there"
        ) from None


def _finished(journal: Path, key: str) -> dict[int, Counter[str]]:
    """First image of each finished piece → conversions in it; empty without a journal of this data set."""
    try:
        first, *lines = journal.read_text(encoding="utf-8").splitlines()
        if json.loads(first) != key:
            return {}
        done = {}
        for line in lines:
            if line.endswith("]"):  # a killed process may have written a part of the last line
                piece, counts = json.loads(line)
                done[piece] = Counter(counts)
    except (OSError, ValueError):
        return {}
    return done


def _convert(
    file: int, start: int, data: LazyImages, items: list[Any], pieces: list[range], threads: int, notes: Any, name: str
) -> dict[int, Counter[str]]:
    """Convert and write `pieces`; first image of each → conversions. Collects refused pictures for one error."""
    size = math.prod(data.shape)

    def convert(piece: range) -> tuple[range, Counter[str], list[str]]:
        images = np.zeros((len(piece), *data.shape), np.uint8)
        counts: Counter[str] = Counter()
        refused = []
        for row, number in enumerate(piece):
            name = shown(str(items[number]))
            reading(name)
            try:
                images[row], done = data.read(items[number])
                counts.update(done)
            except Unsuitable as reason:
                refused.append(f"{name}: {reason}")
            except Exception as error:  # of the picture or of its reader, not of the file that is written
                refused.append(f"{name}: cannot be read: {brief(getattr(error, 'strerror', None) or error)}")
        if not refused:
            rest, at = memoryview(images.tobytes()), start + piece.start * size
            while rest:  # a call may write a part only
                written = os.pwrite(file, rest, at)
                rest, at = rest[written:], at + written
            os.fsync(file)
        return piece, counts, refused

    finished: dict[int, Counter[str]] = {}
    all_refused: list[str] = []
    left = sum(map(len, pieces))
    progress = Progress(f"data {name}", len(items), start=len(items) - left, unit="image")
    with ThreadPoolExecutor(threads) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about metadata, do not name the file
        waiting = [pool.submit(convert, piece) for piece in pieces]
        try:
            for future in waiting:  # in order, so that the journal of a stopped run covers the first images
                piece, counts, refused = future.result()
                if refused:
                    all_refused += refused
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
    if all_refused:
        more = f"; and {len(all_refused) - SHOWN:,} more" if len(all_refused) > SHOWN else ""
        raise UserError(
            f"{'; '.join(all_refused[:SHOWN])}{more}: "
            f"of {len(items):,} pictures {len(all_refused):,} cannot be used; replace or remove them"
        )
    return finished
