"""Models and training checkpoints: files that are whole or not there, and the hashes of their contents."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vaebm.system.errors import UserError
from vaebm.system.files import write_json, writing


def hash_tensors(state: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values: two files of the same tensors may differ, their hash may not."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_model(path: Path, kind: str, network: dict[str, Any], weights: dict[str, Tensor], **more: Any) -> None:
    """Write a model file: weights and configuration, nothing else.

    Args:
        kind: what it is, "nvae", "energy" or "classifier".
        network: the settings that its module is built from.
        more: further plain values, as the shape of the images.
    """
    state = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
    with writing(path) as stream:
        torch.save({"kind": kind, "network": network, "weights": state, "hash": hash_tensors(state), **more}, stream)


def load_model(path: Path | str, kind: str) -> dict[str, Any]:
    """What `save_model` wrote, on the CPU.

    Raises:
        UserError: no such file, not a model of this project, or a model of another kind.
    """
    path = Path(path)
    content = load_plain(path, f"a model of kind {kind!r}")
    if not isinstance(content, dict) or "kind" not in content:
        raise UserError(f"{path}: expected a model of kind {kind!r}, found another kind of file")
    if content["kind"] != kind:
        raise UserError(f"{path}: expected a model of kind {kind!r}, found one of kind {content['kind']!r}")
    return content


def load_plain(path: Path | str, expected: str, allowed: Sequence[type] = ()) -> Any:
    """The content of a file that torch saved, on the CPU: tensors, plain values and objects of the `allowed` classes alone.

    Args:
        expected: what the file should be, for the error.

    Raises:
        UserError: no such file, a damaged one, or one that holds an object of another class: it is named, and never made.
    """
    path = Path(path)
    with torch.serialization.safe_globals(list(allowed)):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            refused = re.search(r"GLOBAL ([\w.]+)", str(error))
            if refused is None:
                raise UserError(f"{path}: expected {expected}, found a damaged file or one of another kind") from None
            raise UserError(
                f"{path}: expected {expected}, found an object of {refused[1]} in it, which is not read: it could run any program"
            ) from None
        except FileNotFoundError:
            raise UserError(f"{path}: expected {expected}, found no file") from None
        except Exception:  # whatever torch's reader stumbles over in a file that is not one of its own
            raise UserError(f"{path}: expected {expected}, found a damaged file or one of another kind") from None


class Checkpoints:
    """Training checkpoints in one folder: two slots, written in turn, each with its checksum.

    The folder is keyed by the fingerprint of what the training depends on, so that a checkpoint of other settings is
    never taken for one of these. A death in the middle of a write leaves the other slot as it was.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.slots = (folder / "a.pt", folder / "b.pt")

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write `state` (tensors and plain values) over the older of the two checkpoints."""
        slot = min(self.slots, key=lambda path: -1 if (step := self._step(path)) is None else step)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        with writing(slot) as stream:
            stream.write(buffer.getbuffer())
        write_json(slot.with_suffix(".json"), {"step": step, "sha256": hashlib.sha256(buffer.getbuffer()).hexdigest()})

    def load(self) -> dict[str, Any] | None:
        """The newest whole checkpoint, or None where there is none."""
        whole = [(step, path) for path in self.slots if (step := self._step(path)) is not None]
        if not whole:
            return None
        state: dict[str, Any] = load_plain(max(whole)[1], "a training checkpoint")
        return state

    @staticmethod
    def _step(path: Path) -> int | None:
        """Step of a checkpoint, None where it is not whole."""
        try:
            beside = json.loads(path.with_suffix(".json").read_text())
            whole = hashlib.sha256(path.read_bytes()).hexdigest() == beside["sha256"]
        except (OSError, ValueError, KeyError):
            return None
        return int(beside["step"]) if whole else None
