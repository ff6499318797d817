"""Published data sets from small files in their true formats: raw → manifest → batch, and errors for damaged files."""

from __future__ import annotations

import gzip
import struct
import tarfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from raw_files import md5, noise, prepared
from scipy.io import savemat

import vaebm.system.torchvision_shim  # noqa: F401  before torchvision
from vaebm.config import DataSettings
from vaebm.data import open_images, prepare
from vaebm.data.download import torchvision_datasets
from vaebm.system.errors import UserError


def python2_batch(
    images: np.ndarray, key: str, labels: list[int], array: bytes = b"cnumpy.core.multiarray\n_reconstruct\n"
) -> bytes:
    """A batch as Python 2's cPickle wrote it (protocol 2): byte strings, an array made by `_reconstruct`."""

    def string(text: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(text)) + text

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    dtype = (
        b"cnumpy\ndtype\n"
        + string(b"u1")
        + b"K\x00K\x01\x87R(K\x03"
        + string(b"|")
        + b"NNN"
        + number(-1)
        + number(-1)
        + b"K\x00tb"
    )
    made = array + b"cnumpy\nndarray\n" + b"K\x00\x85" + string(b"b") + b"\x87R"
    state = (
        b"(K\x01"
        + number(images.shape[0])
        + number(images.shape[1])
        + b"\x86"
        + dtype
        + b"\x89"
        + string(images.tobytes())
        + b"tb"
    )
    return (
        b"\x80\x02}("
        + string(b"data")
        + made
        + state
        + string(key.encode())
        + b"]("
        + b"".join(map(number, labels))
        + b"eu."
    )


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("dataset", "known", "key"), [("cifar10", "CIFAR10", "labels"), ("cifar100", "CIFAR100", "fine_labels")]
)
def test_cifar(
    dataset: str, known: str, key: str, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planes of red, green and blue, batches in order, the test batch held out; from archive and folder."""
    cifar, raw = getattr(torchvision_datasets(), known), tmp_path / "raw"
    names = [name for name, _ in [*cifar.train_list, *cifar.test_list]]
    planes = noise(2 * len(names), 3, 32, 32)
    (raw / cifar.base_folder).mkdir(parents=True)
    for index, name in enumerate(names):
        content = python2_batch(planes[2 * index : 2 * index + 2].reshape(2, -1), key, [index, 9])
        (raw / cifar.base_folder / name).write_bytes(content)
    monkeypatch.setattr(cifar, "train_list", [[name, md5(raw / cifar.base_folder / name)] for name in names[:-1]])
    monkeypatch.setattr(cifar, "test_list", [[names[-1], md5(raw / cifar.base_folder / names[-1])]])
    if packed:
        with tarfile.open(raw / cifar.filename, "w:gz") as archive:
            archive.add(raw / cifar.base_folder, cifar.base_folder)
        (raw / cifar.base_folder).rename(tmp_path / "elsewhere")
        monkeypatch.setattr(cifar, "tgz_md5", md5(raw / cifar.filename))
    images = prepared(dataset, raw)
    assert images.splits == {"train": (0, 2 * len(names) - 2), "heldout": (2 * len(names) - 2, 2 * len(names))}
    batch, labels = images.split("train")
    assert np.array_equal(batch.numpy(), planes[:-2]) and labels.tolist() == [
        label for index in range(len(names) - 1) for label in (index, 9)
    ]
    assert sorted(path.name for path in raw.iterdir()) == [
        cifar.filename if packed else cifar.base_folder
    ]  # nothing was extracted


def test_a_pickle_that_would_run_a_program_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar, raw = torchvision_datasets().CIFAR10, tmp_path / "raw" / "cifar-10-batches-py"
    raw.mkdir(parents=True)
    for name, _ in [*cifar.train_list, *cifar.test_list]:
        (raw / name).write_bytes(python2_batch(noise(1, 3072), "labels", [0], array=b"cos\nsystem\n"))
    monkeypatch.setattr(cifar, "train_list", [[name, md5(raw / name)] for name, _ in cifar.train_list])
    monkeypatch.setattr(cifar, "test_list", [[name, md5(raw / name)] for name, _ in cifar.test_list])
    with pytest.raises(UserError, match=r"data_batch_1: .* found an object of os.system, which is not read"):
        prepared("cifar10", raw.parent)


def test_a_published_file_with_other_bytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "cifar-10-python.tar.gz").write_bytes(b"not the archive")
    with pytest.raises(
        UserError,
        match=r"cifar-10-python.tar.gz: expected the published file \(MD5 c58f3010.*found another .*get it anew from https://www.cs",
    ):
        prepared("cifar10", tmp_path / "raw")


@pytest.fixture
def idx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, np.ndarray]:
    """MNIST's four files for 12 and 5 digits, and the digits."""
    digits, labels, raw = noise(17, 28, 28), (np.arange(17) % 10).astype(np.uint8), tmp_path / "raw"
    raw.mkdir()
    mnist, part = torchvision_datasets().MNIST, {"train": slice(0, 12), "t10k": slice(12, 17)}
    for name, _ in mnist.resources:
        array = (digits if "images" in name else labels)[part[name.split("-")[0]]]
        header = bytes([0, 0, 8, array.ndim]) + b"".join(struct.pack(">I", length) for length in array.shape)
        (raw / name).write_bytes(gzip.compress(header + array.tobytes()))
    monkeypatch.setattr(mnist, "resources", [(name, md5(raw / name)) for name, _ in mnist.resources])
    return raw, digits


def test_mnist_is_padded_by_two_zeros(idx: tuple[Path, np.ndarray]) -> None:
    images = prepared("mnist", idx[0])
    batch, labels = images.split("heldout")
    assert images.splits == {"train": (0, 12), "heldout": (12, 17)} and labels.tolist() == [2, 3, 4, 5, 6]
    assert np.array_equal(batch[:, 0, 2:30, 2:30].numpy(), idx[1][12:])
    assert int(images.images.sum(dtype=np.int64)) == int(idx[1].sum(dtype=np.int64))  # so all around is zero


def test_stacked_mnist_has_each_digit_once_in_each_channel(idx: tuple[Path, np.ndarray]) -> None:
    images = prepared("stacked_mnist", idx[0])
    assert images.shape == (3, 32, 32) and not images.users and images.splits == {"train": (0, 12), "heldout": (12, 17)}
    for channel in range(3):
        assert sorted(image[2:30, 2:30, channel].tobytes() for image in images.images[:12]) == sorted(
            image.tobytes() for image in idx[1][:12]
        )


def test_an_idx_file_that_was_cut_is_refused(idx: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a right checksum, as a damaged mirror could publish one."""
    path, mnist = idx[0] / "t10k-images-idx3-ubyte.gz", torchvision_datasets().MNIST
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))
    monkeypatch.setattr(mnist, "resources", [(name, md5(idx[0] / name)) for name, _ in mnist.resources])
    with pytest.raises(
        UserError,
        match="t10k-images-idx3-ubyte.gz: expected an IDX file of bytes, found 3935 bytes that do not fit their header",
    ):
        prepared("mnist", idx[0])


@pytest.fixture
def mirror(idx: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """A local server with MNIST's four files behind an empty one; number of requests per file. The project is empty."""
    sent: Counter[str] = Counter()

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers["Method"] != "HEAD":  # so torchvision asks first where the address leads
                sent[Path(self.path).name] += 1
            super().do_GET()

        def log_message(self, *arguments: object) -> None:
            """Nothing is printed."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path)) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        here = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(torchvision_datasets().MNIST, "mirrors", [f"{here}nowhere/", f"{here}{idx[0].name}/"])
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        (tmp_path / "project").mkdir()
        monkeypatch.chdir(tmp_path / "project")
        yield sent
        server.shutdown()
        thread.join()


def test_raw_files_are_fetched_once_for_all_who_want_them(mirror: Counter[str], idx: tuple[Path, np.ndarray]) -> None:
    """Two jobs at once; then a file that a killed run left unfinished is fetched anew, and it alone."""
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(prepare, name, Path("data", name)) for name in ("mnist", "stacked_mnist")]
    assert [job.result() for job in jobs] == [None, None]
    names = sorted(path.name for path in idx[0].iterdir())
    assert (
        mirror == Counter(names)
        and [Path("raw/mnist", name).read_bytes() == (idx[0] / name).read_bytes() for name in names] == [True] * 4
    )
    assert open_images(Path("data/stacked_mnist/manifest.json")).splits == {"train": (0, 12), "heldout": (12, 17)}
    Path("raw/mnist", names[0]).write_bytes(b"the beginn")
    prepare("mnist", Path("data/again"))
    assert (
        mirror == Counter([*names, names[0]])
        and Path("data/again/manifest.json").read_bytes() == Path("data/mnist/manifest.json").read_bytes()
    )


def test_what_cannot_be_fetched_is_said_in_one_line(
    mirror: Counter[str], idx: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another file than was published; no file; nobody there."""
    path, mnist = idx[0] / "t10k-labels-idx1-ubyte.gz", torchvision_datasets().MNIST
    path.write_bytes(b"damaged")
    for harm, reason in (
        (lambda: None, "corrupted"),
        (path.unlink, "HTTP Error 404: .*"),
        (lambda: monkeypatch.setattr(mnist, "mirrors", ["http://127.0.0.1:9/"]), "refused"),
    ):
        harm()
        with pytest.raises(
            UserError,
            match=rf"raw/mnist/{path.name}: could not be fetched from http://.*{reason}.*; get it from http.* and put",
        ) as error:
            prepare("mnist", Path("data/mnist"))
        assert "\n" not in str(error.value) and not Path("data/mnist/manifest.json").exists()


def test_svhn_calls_its_zero_ten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, svhn = tmp_path / "raw", torchvision_datasets().SVHN
    raw.mkdir()
    pictures = noise(5, 32, 32, 3)
    parts = {"train": (pictures[:3], [10, 1, 9]), "test": (pictures[3:], [2, 10])}
    changed = {}
    for split, (images, labels) in parts.items():
        url, name, _ = svhn.split_list[split]
        savemat(
            raw / name,
            {"X": images.transpose(1, 2, 3, 0), "y": np.array(labels, np.uint8)[:, None]},
            do_compression=True,
        )
        changed[split] = [url, name, md5(raw / name)]
    monkeypatch.setattr(svhn, "split_list", changed)
    images = prepared("svhn", raw)
    assert np.array_equal(images.images, pictures) and images.labels.tolist() == [0, 1, 9, 2, 0]
    assert images.splits == {"train": (0, 3), "heldout": (3, 5)}


@pytest.mark.parametrize(
    "dataset", ["cifar10", "cifar100", "svhn", "mnist", "stacked_mnist", "celeba64", "lsun_church64", "celebahq256"]
)
def test_where_nothing_is_the_layout_is_named(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"nowhere: expected .+; found no such folder; its owners offer it at http.+, and data.path names another",
    ) as error:
        prepare(DataSettings(dataset=dataset, path=str(tmp_path / "nowhere")), tmp_path / "prepared")
    assert "\n" not in str(error.value)
