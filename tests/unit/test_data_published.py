"""The published data sets from small files in their true formats: raw → manifest → one batch; and what is said of damaged ones."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import lmdb
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

import vaebm.torchvision_operators  # noqa: F401  before torchvision
from vaebm import config
from vaebm.config import DataSettings, UserError
from vaebm.data import open_images, prepare
from vaebm.data.raw import torchvision_datasets
from vaebm.data.tfrecord import crc32c, masked

import torchvision.transforms.v2 as transforms  # isort: skip

RANDOM = np.random.RandomState(0)


def noise(*shape: int) -> np.ndarray:
    return RANDOM.randint(0, 256, shape).astype(np.uint8)


def photo(width: int, height: int) -> Image.Image:
    """Smooth enough for a JPEG to hold."""
    return Image.fromarray(noise(6, 5, 3)).resize((width, height), Image.Resampling.BICUBIC)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def prepared(dataset: str, raw: Path, threads: int = 2):
    folder = raw.parent / "prepared"
    prepare(DataSettings(dataset=dataset, path=str(raw)), folder, threads)
    return open_images(folder / "manifest.json")


def facts(monkeypatch: pytest.MonkeyPatch, dataset: str, **counts: int) -> None:
    """The small files have other counts than the published ones."""
    monkeypatch.setitem(config.DATASETS, dataset, config.DATASETS[dataset]._replace(**counts))


def python2_batch(images: np.ndarray, key: str, labels: list[int], array: bytes = b"cnumpy.core.multiarray\n_reconstruct\n") -> bytes:
    """A batch as Python 2's cPickle wrote it (protocol 2): strings of bytes, an array made by NumPy's `_reconstruct`."""

    def string(text: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(text)) + text

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    dtype = b"cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R(K\x03" + string(b"|") + b"NNN" + number(-1) + number(-1) + b"K\x00tb"
    made = array + b"cnumpy\nndarray\n" + b"K\x00\x85" + string(b"b") + b"\x87R"
    state = b"(K\x01" + number(images.shape[0]) + number(images.shape[1]) + b"\x86" + dtype + b"\x89" + string(images.tobytes()) + b"tb"
    return b"\x80\x02}(" + string(b"data") + made + state + string(key.encode()) + b"](" + b"".join(map(number, labels)) + b"eu."


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("dataset", "known", "key"), [("cifar10", "CIFAR10", "labels"), ("cifar100", "CIFAR100", "fine_labels")])
def test_cifar(dataset: str, known: str, key: str, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planes of red, green and blue, batches in their order, the test batch held out; from the archive and from its folder."""
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
    assert np.array_equal(batch.numpy(), planes[:-2]) and labels.tolist() == [label for index in range(len(names) - 1) for label in (index, 9)]
    assert sorted(path.name for path in raw.iterdir()) == [cifar.filename if packed else cifar.base_folder]  # nothing was extracted


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
    with pytest.raises(UserError, match=r"cifar-10-python.tar.gz: expected the published file \(MD5 c58f3010.*found another .*get it anew from https://www.cs"):
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
        assert sorted(image[2:30, 2:30, channel].tobytes() for image in images.images[:12]) == sorted(image.tobytes() for image in idx[1][:12])


def test_an_idx_file_that_was_cut_is_refused(idx: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a right checksum, as a damaged mirror could publish one."""
    path, mnist = idx[0] / "t10k-images-idx3-ubyte.gz", torchvision_datasets().MNIST
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))
    monkeypatch.setattr(mnist, "resources", [(name, md5(idx[0] / name)) for name, _ in mnist.resources])
    with pytest.raises(UserError, match="t10k-images-idx3-ubyte.gz: expected an IDX file of bytes, found 3935 bytes that do not fit their header"):
        prepared("mnist", idx[0])


@pytest.fixture
def mirror(idx: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """MNIST's four files on a server of this machine, behind another that has nothing; how often each was sent. The project is empty."""
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
    assert mirror == Counter(names) and [Path("raw/mnist", name).read_bytes() == (idx[0] / name).read_bytes() for name in names] == [True] * 4
    assert open_images(Path("data/stacked_mnist/manifest.json")).splits == {"train": (0, 12), "heldout": (12, 17)}
    Path("raw/mnist", names[0]).write_bytes(b"the beginn")
    prepare("mnist", Path("data/again"))
    assert mirror == Counter([*names, names[0]]) and Path("data/again/manifest.json").read_bytes() == Path("data/mnist/manifest.json").read_bytes()


def test_what_cannot_be_fetched_is_said_in_one_line(mirror: Counter[str], idx: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
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
            UserError, match=rf"raw/mnist/{path.name}: could not be fetched from http://.*{reason}.*; get it from http.* and put it there"
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
        savemat(raw / name, {"X": images.transpose(1, 2, 3, 0), "y": np.array(labels, np.uint8)[:, None]}, do_compression=True)
        changed[split] = [url, name, md5(raw / name)]
    monkeypatch.setattr(svhn, "split_list", changed)
    images = prepared("svhn", raw)
    assert np.array_equal(images.images, pictures) and images.labels.tolist() == [0, 1, 9, 2, 0]
    assert images.splits == {"train": (0, 3), "heldout": (3, 5)}


@pytest.fixture
def celeba(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CelebA's list, and seven faces in a folder; the list does not have them in the order of the splits."""
    raw, known = tmp_path / "raw", torchvision_datasets().CelebA
    (raw / "img_align_celeba").mkdir(parents=True)
    for index in range(1, 8):
        photo(178, 218).save(raw / "img_align_celeba" / f"{index:06}.jpg", quality=95)
    (raw / "list_eval_partition.txt").write_text("".join(f"{index:06}.jpg {part}\n" for index, part in enumerate([0, 1, 0, 2, 1, 0, 0], start=1)))
    changed = [(drive, md5(raw / name) if name == "list_eval_partition.txt" else sum_, name) for drive, sum_, name in known.file_list]
    monkeypatch.setattr(known, "file_list", changed)
    return raw


@pytest.mark.parametrize("packed", [True, False])
def test_celeba_is_cropped_and_made_smaller_as_published(celeba: Path, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against torchvision's own crop and antialiased resize of the same picture: the same bytes, for both go through Pillow."""
    names = ["000001", "000003", "000006", "000007", "000002", "000005"]
    shape = transforms.Resize(64, interpolation=transforms.InterpolationMode.BILINEAR)
    expected = []
    for name in names:
        picture = Image.open(celeba / "img_align_celeba" / f"{name}.jpg")
        expected.append(np.asarray(shape(transforms.functional.crop(picture, top=40, left=15, height=148, width=148))))
    if packed:
        known = torchvision_datasets().CelebA
        with zipfile.ZipFile(celeba / "img_align_celeba.zip", "w") as archive:
            for path in (celeba / "img_align_celeba").iterdir():
                archive.write(path, f"img_align_celeba/{path.name}")
        (celeba / "img_align_celeba").rename(celeba.parent / "elsewhere")
        changed = [(drive, md5(celeba / name) if name.endswith(".zip") else sum_, name) for drive, sum_, name in known.file_list]
        monkeypatch.setattr(known, "file_list", changed)
    images = prepared("celeba64", celeba)
    assert images.splits == {"train": (0, 4), "heldout": (4, 6)}
    assert np.array_equal(images.images, expected)


def test_every_unsuitable_face_is_named(celeba: Path) -> None:
    """Cut off, missing, of another size: three of six."""
    faces = celeba / "img_align_celeba"
    (faces / "000003.jpg").write_bytes((faces / "000003.jpg").read_bytes()[:-900])
    (faces / "000006.jpg").unlink()
    photo(178, 178).save(faces / "000002.jpg")
    with pytest.raises(UserError) as error:
        prepared("celeba64", celeba)
    assert "\n" not in str(error.value)
    for part in ("000003.jpg: expected a whole picture", "000006.jpg: list_eval_partition.txt names it", "found 178×178", "of 6 pictures 3 cannot be used"):
        assert part in str(error.value)
    assert not (celeba.parent / "prepared" / "manifest.json").exists()


def test_a_list_cannot_lead_out_of_the_folder(celeba: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, known = celeba / "list_eval_partition.txt", torchvision_datasets().CelebA
    path.write_text("../../secret.jpg 0\n")
    monkeypatch.setattr(known, "file_list", [(drive, md5(path) if name == path.name else sum_, name) for drive, sum_, name in known.file_list])
    with pytest.raises(UserError, match=r"list_eval_partition.txt:1: expected the name of a file and 0, 1 or 2"):
        prepared("celeba64", celeba)


def write_lmdb(folder: Path, values: dict[bytes, bytes]) -> None:
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=1 << 22) as environment, environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key, value)


def encoded(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def test_lsun_is_the_centre_of_the_picture_made_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against torchvision's Resize and CenterCrop: the same bytes. The files are as they were, their locks too."""
    raw, sizes = tmp_path / "raw", [(90, 70), (64, 100), (71, 256), (64, 64)]
    pictures = [photo(*size) for size in sizes]
    write_lmdb(raw / "church_outdoor_train_lmdb", {f"{index:040x}".encode(): encoded(picture, "webp") for index, picture in enumerate(pictures[:3])})
    write_lmdb(raw / "church_outdoor_val_lmdb", {b"a": encoded(pictures[3], "png")})
    before = {path: path.read_bytes() for path in raw.rglob("*.mdb")}
    facts(monkeypatch, "lsun_church64", train=3, heldout=1)
    images = prepared("lsun_church64", raw)
    decoded = [Image.open(io.BytesIO(encoded(picture, "webp"))).convert("RGB") for picture in pictures[:3]] + [pictures[3]]
    shape = transforms.Compose([transforms.Resize(64), transforms.CenterCrop(64)])
    assert np.array_equal(images.images, [np.asarray(shape(picture)) for picture in decoded])
    assert images.split("heldout")[0].shape == (1, 3, 64, 64)
    assert {path: path.read_bytes() for path in raw.rglob("*.mdb")} == before


def test_an_incomplete_database_is_refused(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_lmdb(tmp_path / "raw" / f"church_outdoor_{part}_lmdb", {b"a": b"b"})
    with pytest.raises(UserError, match=r"church_outdoor_train_lmdb: expected 126,227 pictures \(train\), found 1; get it anew"):
        prepared("lsun_church64", tmp_path / "raw")


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def example(shape: tuple[int, ...], data: bytes) -> bytes:
    """An `Example` with the integers `shape`, packed, and the bytes `data`."""
    integers = field(3, field(1, b"".join(map(varint, shape))))
    features = {b"shape": integers, b"data": field(1, field(1, data)), b"label": field(3, field(1, varint(0)))}
    return field(1, b"".join(field(1, field(1, name) + field(2, value)) for name, value in features.items()))


def record(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    return length + struct.pack("<I", masked(crc32c(length))) + content + struct.pack("<I", masked(crc32c(content)))


HQ = noise(4, 256, 256, 3)


def hq_files(raw: Path) -> None:
    for index, image in enumerate(HQ):
        path = raw / ("train" if index < 3 else "validation") / f"{index:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, compress_level=0)


def hq_lmdb(raw: Path) -> None:
    """The order is that of the numbers, not that of the text, in which 10 and 100 come before 9."""
    write_lmdb(raw / "train.lmdb", {b"9": HQ[0].tobytes(), b"10": HQ[1].tobytes(), b"100": HQ[2].tobytes()})
    write_lmdb(raw / "validation.lmdb", {b"0": HQ[3].tobytes()})


def hq_records(raw: Path) -> None:
    """Both orders of the axes, two files for one split; other resolutions stand beside."""
    for split, files in {"train": [HQ[:2], HQ[2:3]], "validation": [HQ[3:]]}.items():
        (raw / split).mkdir(parents=True)
        (raw / split / f"{split}-r07-s-0000-of-0001.tfrecords").write_bytes(b"another resolution")
        for number, images in enumerate(files):
            last = [record(example((256, 256, 3), image.tobytes())) for image in images[:1]]
            first = [record(example((3, 256, 256), image.transpose(2, 0, 1).tobytes())) for image in images[1:]]
            (raw / split / f"{split}-r08-s-{number:04}-of-{len(files):04}.tfrecords").write_bytes(b"".join(last + first))


@pytest.mark.parametrize("write", [hq_files, hq_lmdb, hq_records])
def test_celebahq_in_each_of_its_layouts(write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts(monkeypatch, "celebahq256", train=3, heldout=1)
    write(tmp_path / "raw")
    images = prepared("celebahq256", tmp_path / "raw")
    assert np.array_equal(images.images, HQ) and images.splits == {"train": (0, 3), "heldout": (3, 4)}
    assert np.array_equal(images.split("heldout")[0][0].numpy(), HQ[3].transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("at", "said"), [(5, "expected whole TFRecords, found damage at byte 0"), (100_000, "record at byte 0: expected a whole record, found another checksum")]
)
def test_a_damaged_record_is_refused(at: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts(monkeypatch, "celebahq256", train=3, heldout=1)
    hq_records(tmp_path / "raw")
    path = tmp_path / "raw" / "train" / "train-r08-s-0000-of-0002.tfrecords"
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        prepared("celebahq256", tmp_path / "raw")


def test_a_record_of_fewer_than_four_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts(monkeypatch, "celebahq256", train=3, heldout=1)
    hq_records(tmp_path / "raw")
    length = struct.pack("<Q", 3)
    (tmp_path / "raw" / "validation" / "validation-r08-s-0000-of-0001.tfrecords").write_bytes(length + struct.pack("<I", masked(crc32c(length))) + bytes(7))
    with pytest.raises(UserError, match="record at byte 0: expected an image, found a record of 3 bytes"):
        prepared("celebahq256", tmp_path / "raw")


def test_the_checksum_is_crc32c() -> None:
    """The check value of the CRC catalogue, RFC 3720's zeros, and lanes against the definition, bit by bit."""
    assert (crc32c(b"123456789"), crc32c(bytes(32))) == (0xE3069283, 0x8A9136AA)
    for length in (4, 511, 512, 513, 1500):
        content, register = noise(length).tobytes(), 0xFFFFFFFF
        for byte in content:
            register ^= byte
            for _ in range(8):
                register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
        assert crc32c(content) == register ^ 0xFFFFFFFF


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "svhn", "mnist", "stacked_mnist", "celeba64", "lsun_church64", "celebahq256"])
def test_where_nothing_is_the_layout_is_named(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"nowhere: expected .+; found no such folder; its owners offer it at http.+, and data.path names another place"
    ) as error:
        prepare(DataSettings(dataset=dataset, path=str(tmp_path / "nowhere")), tmp_path / "prepared")
    assert "\n" not in str(error.value)
