"""Images that another program drew: read as they are, in natural order, or refused in one line."""

import hashlib
import re

import numpy as np
import pytest
import torch
from PIL import Image

from vaebm.config.foreign import foreign_files, foreign_state
from vaebm.config.yaml_files import read_experiment
from vaebm.data.foreign import read_foreign
from vaebm.system.errors import UserError

TINY = "config/experiments/tiny.yaml"


def drawn(channels=3):
    """Images (12, C, 8, 6)."""
    return np.random.default_rng(0).integers(0, 256, (12, channels, 8, 6), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_form_has_the_same_pixels(tmp_path, channels):
    """Files without zeros at the front, two of them in a subfolder; arrays with channels first, last or left out."""
    images, (pngs, shape) = drawn(channels), (tmp_path / "pngs", (channels, 8, 6))
    (pngs / "9").mkdir(parents=True)
    (pngs / ".hidden").touch()
    last = images.transpose(0, 2, 3, 1)
    for index, image in enumerate(last):
        Image.fromarray(image.squeeze()).save(pngs / (f"9/{index}.png" if index > 9 else f"{index}.png"))
    np.save(tmp_path / "first.npy", images)
    np.savez(tmp_path / "last.npz", last)
    np.savez(tmp_path / "named.npz", images=last.squeeze())
    np.savez(tmp_path / "labelled.npz", last / np.float32(255), np.zeros(12))
    names = ["pngs", "first.npy", "last.npz", "named.npz", "labelled.npz"]
    for name in names:
        found, origin = read_foreign(tmp_path / name, shape)
        assert torch.equal(found, torch.from_numpy(images)), name
        assert origin.path == str(tmp_path / name) and origin.images == 12
        if name != "pngs":
            assert origin.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    assert [path.name for path in foreign_files(pngs)] == [f"{index}.png" for index in range(12)]


def test_hash_and_state_change_with_a_picture_and_its_name(tmp_path):
    found = []
    for change in (None, lambda: Image.new("L", (6, 8), 9).save(tmp_path / "0.png"), lambda: rename(tmp_path)):
        Image.new("L", (6, 8), 3).save(tmp_path / "1.png")
        Image.new("L", (6, 8)).save(tmp_path / "0.png") if change is None else change()
        found.append((read_foreign(tmp_path, (1, 8, 6))[1].sha256, foreign_state(tmp_path)))
    assert len({digest for digest, _ in found}) == len({state for _, state in found}) == 3


def rename(folder):
    """Give a file another name."""
    (folder / "0.png").rename(folder / "2.png")


BAD = {
    "float.npy": drawn() / 255 * 2 - 1,
    "nan.npy": np.full((2, 3, 8, 6), np.nan),
    "int.npy": drawn().astype(np.int64),
    "side.npy": drawn()[..., :5],
    "none.npy": drawn()[:0],
    "object.npy": np.array([None]),
}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("float.npy", "from 0 to 1, found (12, 3, 8, 6) float64 from -1 to 1"),
        ("nan.npy", "found (2, 3, 8, 6) float64 from nan to nan"),
        ("int.npy", "N, 8, 6, 3) uint8, or floating-point numbers from 0 to 1, found (12, 3, 8, 6) int64"),
        ("side.npy", "found (12, 3, 8, 5) uint8"),
        ("none.npy", "found (0, 3, 8, 6) uint8"),
        ("object.npy", "expected a whole file .npy or .npz, found something unreadable (Array can't be"),
        ("torn.npz", "expected a whole file .npy or .npz, found something unreadable ("),
        ("two.npz", "expected an array arr_0, or a single one, found a, b"),
        ("nothing", "expected a folder with nothing but PNG files, or a file .npy or .npz, found none"),
        ("empty", "found a folder without any"),
        ("mixed", "found notes.txt in it"),
        ("one.png", "or a file .npy or .npz, found a file"),
        ("wide", "expected 8×6 pixels of 3 channel(s), found 8×7; write it as the data are"),
        ("grey", "expected 8×6 pixels of 3 channel(s), found 8×6, grey to colour"),
        ("torn", "0.png: expected a picture"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(tmp_path, name, message):
    for file, array in BAD.items():
        np.save(tmp_path / file, array)
    np.savez(tmp_path / "two.npz", a=drawn(), b=drawn())
    (tmp_path / "torn.npz").write_bytes((tmp_path / "two.npz").read_bytes()[:900])
    for folder, image in (("wide", Image.new("RGB", (7, 8))), ("grey", Image.new("L", (6, 8))), ("empty", None)):
        (tmp_path / folder).mkdir()
        if image:
            image.save(tmp_path / folder / "0.png")
    for folder, file in (("mixed", "notes.txt"), ("torn", "0.png")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text("x")
    Image.new("RGB", (6, 8)).save(tmp_path / "one.png")
    with pytest.raises(UserError, match=rf"{re.escape(str(tmp_path / name))}.*{re.escape(message)}") as error:
        read_foreign(tmp_path / name, (3, 8, 6))
    assert "\n" not in str(error.value)


def test_such_a_variant_has_no_stage_and_the_first_seed_alone(pytestconfig):
    path = pytestconfig.rootpath / TINY
    found = read_experiment(path, ["variants.drawn.images=pngs"])
    assert found.models == ["nvae", "vaebm", "drawn"] and found.samples_of("drawn") is None
    assert [found.seeds_of(name, [3, 4]) for name in found.models] == [[3, 4], [3, 4], [3]]
    assert found.model_dump()["variants"]["vaebm"] == read_experiment(path).model_dump()["variants"]["vaebm"]
    for other, value in (("ebm", "{positives: clean}"), ("metric", "FID"), ("grid", "{samples.chain.steps: [1]}")):
        with pytest.raises(UserError, match=f"images: expected no other key with images of .*, found {other}"):
            read_experiment(path, ["variants.drawn.images=pngs", f"variants.drawn.{other}={value}"])


def test_path_of_images_is_in_no_hash(pytestconfig):
    """As the paths of data and weights: figures do not depend on the place of the files."""
    path = pytestconfig.rootpath / TINY
    here, there = (read_experiment(path, [f"variants.other.images={name}"]) for name in ("here", "there"))
    assert here.hash() == there.hash() != read_experiment(path).hash()
