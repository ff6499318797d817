"""Model files and training checkpoints, written atomically, with hashes of their contents."""

import contextlib
import hashlib
import json
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from vaebm.system import distributed
from vaebm.system.errors import UserError
from vaebm.system.files import checksum, write_json, writing

HEADER = "vaebm"
"""Key of the header's metadata with the model's configuration, as JSON."""


def hash_tensors(state: dict[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values; unlike that of files, equal for equal tensors."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_model(path: Path, kind: str, network: dict[str, Any], weights: dict[str, Tensor], **more: Any) -> None:
    """Write a model file: weights as safetensors, and in its header the configuration and the weights' hash.

    Args:
        kind: "nvae", "prior", "energy" or "classifier".
        network: settings from which the module is built.
        more: further plain values, for example the shape of the images.

    Raises:
        UserError: a weight is not finite.
    """
    state = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    uses = Counter(tensor.untyped_storage().data_ptr() for tensor in state.values())
    for name, tensor in state.items():
        if uses[tensor.untyped_storage().data_ptr()] > 1:  # safetensors refuses shared memory
            state[name] = tensor.clone()
    if bad := next((name for name, tensor in state.items() if not tensor.isfinite().all()), None):
        raise UserError(f"{path}: {bad}: expected finite weights, found others; choose a smaller learning rate")
    header = {"kind": kind, "network": network, "hash": hash_tensors(state), **more}
    header["header"] = _hash_header(header)
    with writing(path) as stream:
        stream.write(safetensors.torch.save(state, {HEADER: json.dumps(header)}))


def _hash_header(header: dict[str, Any]) -> str:
    """SHA-256 of the header's other values."""
    known = {key: value for key, value in header.items() if key not in ("header", "weights")}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def load_model(path: Path | str, kind: str | None = None) -> dict[str, Any]:
    """Content of a model file, on the CPU: the header's values, and "weights". Files of `torch.save` load too.

    Args:
        kind: the expected kind; None: any.

    Raises:
        UserError: the file does not exist, is damaged, is not a model of this project, or of another kind.
    """
    expected = f"a model of kind {kind!r}" if kind else "a model"
    content = _read_safetensors(path) or load_plain(path, expected)
    if not isinstance(content, dict) or not {"kind", "network", "weights", "hash"} <= content.keys():
        raise UserError(f"{path}: expected {expected}, found another kind of file")
    if kind is not None and content["kind"] != kind:
        raise UserError(f"{path}: expected {expected}, found one of kind {content['kind']!r}")
    if content.get("header") not in (None, _hash_header(content)):  # earlier versions have none
        raise UserError(f"{path}: expected {expected}, found a damaged header; make it anew or restore it")
    if (found := hash_tensors(content["weights"])) != content["hash"]:
        raise UserError(
            f"{path}: expected weights with the hash {content['hash'][:12]} of its header, found {found[:12]}: "
            "the file is damaged; make it anew or restore it"
        )
    return content


@contextlib.contextmanager
def of_this_version(path: Path | str, what: str) -> Iterator[None]:
    """In this context any error becomes a `UserError`: the model file does not fit `what`, this version's network."""
    try:
        yield
    except Exception:  # torch and the settings raise many classes
        found = "found one with other settings or weights; train or convert it again"
        raise UserError(f"{path}: expected {what} of this version, {found}") from None


def _read_safetensors(path: Path | str) -> dict[str, Any] | None:
    """Content of a safetensors file with a header of this project; None: another kind of file, or none."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})[HEADER])
            return {**header, "weights": safetensors.torch.load_file(path)}
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError):
        return None


def load_plain(path: Path | str, expected: str, allowed: Sequence[type] = (), mapped: bool = False) -> Any:
    """Content of a file of `torch.save`, on the CPU: tensors, plain values and objects of the `allowed` classes only.

    Args:
        expected: description of the file, for errors.
        mapped: whether a zip file is mapped, so that what nobody uses, as the state of an optimiser, takes no memory;
            its checksums, which torch ignores, are compared. Not for files that are written again while they are used.

    Raises:
        UserError: the file does not exist, is damaged, or contains an object of another class, which is not created.
    """
    damaged = UserError(f"{path}: expected {expected}, found a damaged file or one of another kind")
    with torch.serialization.safe_globals(list(allowed)):
        try:
            if mapped := mapped and zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as file:
                    if file.testzip() is not None:
                        raise damaged
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError as error:
            refused = re.search(r"GLOBAL ([\w.]+)", str(error))
            if refused is None:
                raise damaged from None
            raise UserError(
                f"{path}: expected {expected}, found an object of {refused[1]} in it, which is not read: "
                "it could run any program"
            ) from None
        except FileNotFoundError:
            raise UserError(f"{path}: expected {expected}, found no file") from None
        except IsADirectoryError:
            raise UserError(f"{path}: expected a file with {expected}, found a folder; give a file in it") from None
        except Exception:  # torch raises many classes for other files
            raise damaged from None


def load_state(network: nn.Module, path: Path | str, expected: str) -> None:
    """Load the weights of a published file into a network whose parameters have the same names.

    The state dict may be wrapped in `state_dict`, its names may begin with `module.` (data-parallel training), and it
    may contain batch counts, which are ignored.

    Args:
        network: may be on torch's device "meta".
        expected: description of the file, for errors.

    Raises:
        UserError: no such file, or the weights in it are not exactly the network's.
    """
    content = load_plain(path, expected)
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise UserError(f"{path}: expected {expected}, found another kind of file")
    given, own = (
        {name.removeprefix("module."): value for name, value in one.items() if not name.endswith("num_batches_tracked")}
        for one in (state, network.state_dict())
    )
    if differing := sorted(own.keys() ^ given.keys()):
        raise UserError(
            f"{path}: expected {expected}, found {'no' if differing[0] in own else 'also'} {differing[0]} in it"
        )
    for name, tensor in own.items():
        if not isinstance(given[name], Tensor) or given[name].shape != tensor.shape:
            found = tuple(given[name].shape) if isinstance(given[name], Tensor) else type(given[name]).__name__
            raise UserError(f"{path}: expected {expected} with {name} {tuple(tensor.shape)}, found {found}")
        given[name] = given[name].to(tensor.dtype)
    network.load_state_dict(given, strict=False, assign=True)  # not strict because of the batch counts


class CheckpointRecord(BaseModel, frozen=True, strict=True, extra="forbid"):
    """a.json, b.json: step, checksum and order of a checkpoint; earlier versions ordered by the step."""

    step: int
    sha256: str
    sequence: int = 0


class _Hashing:
    """Writes to a stream and hashes what it writes."""

    def __init__(self, stream: IO[bytes]):
        self.stream, self.digest, self.flush = stream, hashlib.sha256(), stream.flush

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        return self.stream.write(content)


class Checkpoints:
    """Training checkpoints in one folder: two slots, written in turn, each with a checksum.

    The name of the folder is the fingerprint of everything that the training depends on. A process killed while writing
    leaves the other slot unchanged.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.slots = (folder / "a.pt", folder / "b.pt")
        self._damaged: set[Path] = set()

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write `state` (tensors and plain values) over a damaged or the older checkpoint."""
        slot = min(self.slots, key=self._order)
        with writing(slot) as stream:
            torch.save(state, hashing := _Hashing(stream))  # type: ignore[arg-type]  # it only writes
        sequence = max(map(self._order, self.slots))[0] + 1
        record = CheckpointRecord(step=step, sha256=hashing.digest.hexdigest(), sequence=sequence)
        write_json(slot.with_suffix(".json"), record.model_dump())
        self._damaged.discard(slot)

    def load(self) -> dict[str, Any] | None:
        """State of the newest intact checkpoint; None: there is none. Damaged ones are reported."""
        found = [slot for slot in sorted(self.slots, key=self._order, reverse=True) if slot.is_file()]
        for slot in found:
            if (record := self._record(slot)) is not None and checksum(slot) == record.sha256:
                return load_plain(slot, "a training checkpoint")
            self._damaged.add(slot)
            if distributed.rank() == 0:
                then = "the training starts from the beginning" if slot == found[-1] else "the one before it is read"
                print(f"warning: {slot}: expected a whole checkpoint, found a damaged one; {then}", flush=True)
        return None

    def _order(self, slot: Path) -> tuple[int, int]:
        """Sequence number and step of a checkpoint, which are larger for newer ones."""
        record = None if slot in self._damaged else self._record(slot)
        return (-1, -1) if record is None else (record.sequence, record.step)

    @staticmethod
    def _record(slot: Path) -> CheckpointRecord | None:
        """Record of a checkpoint; None: it is absent or damaged."""
        try:
            return CheckpointRecord.model_validate_json(slot.with_suffix(".json").read_bytes())
        except (OSError, ValueError):
            return None
