"""Random damage of files, pictures, archives and experiment files, and what reads them, for tests/faults/run.py."""

from __future__ import annotations

import copy
import gzip
import io
import random
import struct
import tempfile
import warnings
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from vaebm.cli.describe import run as describe
from vaebm.config import DataSettings
from vaebm.config.pipeline import resolve
from vaebm.config.yaml_files import _Dumper, read_yaml
from vaebm.data.decode import Unsuitable, read_resized
from vaebm.data.mnist import read_idx
from vaebm.data.svhn import read_mat
from vaebm.data.tfrecord import masked_crc32c, records
from vaebm.data.user_files import prepare_arrays
from vaebm.system.errors import UserError

SURVIVED, REFUSED, TRACEBACK, WRONG = "survived", "refused in one line", "traceback", "wrong"
ODD: list[Any] = [
    None, True, -1, 0, 1, 2, 3.5, 1e30, -1e-30, float("nan"), float("inf"), 10**30, "", "x", "../x", "a b", "\n", "é",
    [], [1], ["x"], {}, {"x": 1}, [[]], "1e-3", "null", "x" * 300,
]  # fmt: skip


def damaged(content: bytes, chance: random.Random) -> bytes:
    """`content` with flipped bits, another end, zeros, or parts of it elsewhere; it may be equal."""
    found, length = bytearray(content), len(content)
    if not length:
        return b"\0"
    at = chance.randrange(length)
    match chance.randrange(8):
        case 0 | 1 | 2:
            found[at] ^= 1 << chance.randrange(8)
        case 3:
            for _ in range(chance.randint(2, 20)):
                found[chance.randrange(length)] = chance.randrange(256)
        case 4:
            del found[at:]
        case 5:
            end = min(length, at + chance.randint(1, max(length // 2, 1)))
            found[at:end] = bytes(end - at)
        case 6:
            del found[at : at + chance.randint(1, 16)]
        case 7:
            start = chance.randrange(length)
            found[at:at] = content[start : start + chance.randint(1, 64)]
    return bytes(found)


def judge(line: str) -> str:
    """The result for the message of an error of the user's."""
    return REFUSED if line.isprintable() and len(line) <= 1000 else TRACEBACK


# Experiment files.


def changed_settings(settings: Any, chance: random.Random) -> None:
    """Change up to three values or keys of nested settings."""
    places: list[tuple[Any, Any]] = []

    def collect(part: Any) -> None:
        for key, value in part.items() if isinstance(part, dict) else enumerate(part):
            places.append((part, key))
            if isinstance(value, dict | list):
                collect(value)

    collect(settings)
    for part, key in chance.sample(places, min(chance.randint(1, 3), len(places))):
        if (isinstance(part, dict) and key not in part) or (isinstance(part, list) and key >= len(part)):
            continue
        value = part[key]
        match chance.randrange(9):
            case 0 if isinstance(part, dict):
                del part[key]
            case 1 if isinstance(part, dict):
                part[chance.choice(["other", "", "é", "a.b", "../a", "x" * 200])] = part.pop(key)
            case 2 | 3 | 4 | 5 if isinstance(value, int | float):
                part[key] = type(value)(value * chance.choice([0, -1, 0.5, 0.9, 2, 3, 1000, 10**9]))
            case 6:
                part[key] = copy.deepcopy(chance.choice(places)[0])
            case _:
                part[key] = copy.deepcopy(chance.choice(ODD))


def configuration(chance: random.Random, files: list[Path]) -> str:
    """Read one changed experiment file as the pipeline does; what is accepted is described too, if it is small."""
    name = chance.choice(files)
    text = name.read_text(encoding="utf-8")
    if chance.random() < 0.3:
        content = damaged(text.encode(), chance)
    else:
        settings = read_yaml(name)
        changed_settings(settings, chance)
        try:
            content = yaml.dump(settings, Dumper=_Dumper, allow_unicode=True).encode()
        except RecursionError:  # a part of itself
            return SURVIVED
    with tempfile.TemporaryDirectory() as folder, chdir(folder), redirect_stdout(io.StringIO()):
        Path("config/experiments").mkdir(parents=True)
        Path("config/config.yaml").write_text("experiments: [one]\nseeds: [0]\n")
        Path("config/experiments/one.yaml").write_bytes(content)
        try:
            resolve({}, write=True)
            if name.stem in ("tiny", "digits"):
                describe(Path("one"), 10.0)
        except UserError as error:
            return judge(str(error).replace("\n", " "))
    return SURVIVED


# Pictures and archives.


def pictures(chance: random.Random) -> list[tuple[str, bytes]]:
    """Small pictures of all formats, modes and compressions."""
    made = []
    random_bytes = np.random.default_rng(chance.randrange(1 << 30))
    compressions = [{"compression": name} for name in ("raw", "tiff_lzw", "tiff_adobe_deflate")]
    for form, modes, options in (
        ("PNG", ["1", "L", "LA", "I;16", "P", "RGB", "RGBA"], [{}, {"transparency": 3}]),
        ("JPEG", ["L", "RGB", "CMYK"], [{}, {"progressive": True}, {"quality": 100, "subsampling": 0}]),
        ("WEBP", ["RGB", "RGBA"], [{}, {"lossless": True}]),
        ("BMP", ["1", "L", "P", "RGB"], [{}]),
        ("GIF", ["L", "P"], [{}]),
        ("TIFF", ["1", "L", "I;16", "RGB", "RGBA", "CMYK", "P"], compressions),
        ("PPM", ["1", "L", "I;16", "RGB"], [{}]),
    ):  # fmt: skip
        for mode in modes:
            pixels = random_bytes.integers(0, 256, (12, 16, 4), np.uint8)
            grey = pixels[..., 0].astype(np.uint16) * 257
            colours = Image.fromarray(pixels, "RGBA")
            image = Image.fromarray(grey) if mode == "I;16" else colours.convert(mode if mode != "P" else "RGB")
            for more in options:
                try:
                    (image.quantize() if mode == "P" else image).save(file := io.BytesIO(), form, **more)
                except (OSError, ValueError, TypeError):
                    continue
                made.append((form, file.getvalue()))
    return made


def archives(chance: random.Random) -> dict[str, tuple[bytes, Callable[[Path], Any]]]:
    """Kind → a small file of it, and its reader."""
    from scipy.io import savemat

    random_bytes = np.random.default_rng(chance.randrange(1 << 30))
    images, labels = random_bytes.integers(0, 256, (20, 4, 4, 1), np.uint8), np.arange(20) % 3
    (savez := io.BytesIO(), np.savez(savez, images=images, labels=labels))
    (deflated := io.BytesIO(), np.savez_compressed(deflated, images=images, labels=labels))
    mat = {"X": random_bytes.integers(0, 256, (32, 32, 3, 2), np.uint8), "y": np.array([[1], [10]])}
    (savemat(matlab := io.BytesIO(), mat, do_compression=True),)
    idx = gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", 20, 4, 4) + images.tobytes())
    length = struct.pack("<Q", 40)
    content = images.tobytes()[:40]
    sums = (struct.pack("<I", masked_crc32c(part)) for part in (length, content))
    record = length + next(sums) + content + next(sums)

    def arrays(path: Path) -> Any:
        return prepare_arrays(
            DataSettings(dataset="arrays", path=str(path), side=4, channels=1, heldout=0.2), threads=1
        )

    return {
        "a.npz": (savez.getvalue(), arrays),
        "b.npz": (deflated.getvalue(), arrays),
        "c.gz": (idx, read_idx),
        "d.mat": (matlab.getvalue(), read_mat),
        "e.tfrecords": (record * 3, records),
    }


class Pictures:
    """Damages pictures, and an archive each twentieth time."""

    def __init__(self, seed: int, folder: Path):
        chance = random.Random(f"pictures {seed}")
        self.folder, self.seed = folder, seed
        self.pictures, self.archives = pictures(chance), archives(chance)
        self.whole = [read_resized(io.BytesIO(content), 3, 8)[0] for _, content in self.pictures]

    def trial(self, number: int) -> str:
        """Read one damaged file. A PNG has checksums: it is refused, or comes out as it was."""
        chance = random.Random(f"{self.seed} {number}")
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            try:
                if number % 20 == 0:
                    name, (content, read) = chance.choice(list(self.archives.items()))
                    (self.folder / name).write_bytes(damaged(content, chance))
                    read(self.folder / name)
                    return SURVIVED
                index = chance.randrange(len(self.pictures))
                form, content = self.pictures[index]
                image, _ = read_resized(io.BytesIO(damaged(content, chance)), chance.choice((1, 3, 3)), 8)
                fits = image.dtype == np.uint8 and image.shape[:2] == (8, 8)
                kept = form != "PNG" or image.shape[2] == 1 or np.array_equal(image, self.whole[index])
                return SURVIVED if fits and kept else WRONG
            except (Unsuitable, UserError) as error:
                return judge(str(error))
