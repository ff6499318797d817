"""A user's own pictures: what is held out, what is refused, and going on after a stop."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from user_files import COLOUR, GREY, SIDE, noise, saved

from vaebm.config import DataSettings
from vaebm.config.yaml_files import validate
from vaebm.data import convert_large, open_images, prepare
from vaebm.data.convert_large import LazyImages, write_lazy_images
from vaebm.data.user_files import split_by_hash
from vaebm.system.errors import UserError


def settings(dataset: str, path: Path, **more: object) -> DataSettings:
    about = {"side": SIDE, "channels": 3, "heldout": 0.25} if dataset == "folder" else {"side": SIDE, "channels": 3}
    return validate(DataSettings, {"dataset": dataset, "path": str(path), **about, **more}, "data")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Sixteen pictures of all kinds and sizes in two classes, one of them twice, and files that are none."""
    folder = tmp_path / "mixed"
    for index in range(13):
        saved(
            folder / ("a" if index % 2 else "b") / f"{index}.png",
            Image.fromarray(noise(index, SIDE + index, 2 * SIDE, 3)),
        )
    saved(folder / "a" / "grey.jpg", Image.fromarray(noise(20, 30, 20)))
    saved(folder / "b" / "deep" / "CMYK.JPEG", Image.fromarray(noise(21, 20, 30, 3)).convert("CMYK"))
    shutil.copy(folder / "a" / "1.png", folder / "b" / "copy of 1.png")
    (folder / "notes.txt").write_text("what they are")
    saved(folder / "a" / ".thumbnail.png", Image.fromarray(GREY))
    return folder


def test_a_folder_of_mixed_pictures(pictures: Path, tmp_path: Path) -> None:
    prepare(settings("folder", pictures, name="mixed"), tmp_path / "out", threads=2)
    images, manifest = (
        open_images(tmp_path / "out" / "manifest.json"),
        json.loads((tmp_path / "out" / "manifest.json").read_text()),
    )
    held_out = images.splits["heldout"][1] - images.splits["heldout"][0]
    assert images.name == "mixed" and images.shape == (3, SIDE, SIDE) and images.splits["train"] == (0, 16 - held_out)
    assert held_out in (4, 5)  # a quarter, and a fifth where the fourth stands there twice
    source = manifest["source"]["user's files"]
    assert (source["pictures"], source["other files"], source["duplicates"], source["classes"]) == (
        16,
        2,
        1,
        ["a", "b"],
    )
    # 16×8 has its size already; 16×15, 16×16 and 16×17 become 8×8, rounded down
    assert manifest["source"]["converted"] == {
        "CMYK to RGB": 1,
        "centre cut out": 13,
        "grey to colour": 1,
        "made smaller": 15,
    }
    assert images.labels.sum() == 9
    assert images.split("heldout")[0].shape == (held_out, 3, SIDE, SIDE)
    train, rest = (
        {image.tobytes() for image in images.images[slice(*images.splits[split])]} for split in ("train", "heldout")
    )
    assert not train & rest and len(train | rest) == 15


def test_the_split_follows_the_bytes_alone(pictures: Path, tmp_path: Path) -> None:
    """Under other names, in another order, the same pictures are held out."""
    prepare(settings("folder", pictures), tmp_path / "out")
    (pictures / "a" / ".thumbnail.png").unlink()
    for index, path in enumerate(sorted(pictures.rglob("*.[pP][nN][gG]"), reverse=True)):
        path.rename(pictures / f"{index}.png")
    for path in pictures.rglob("*.[jJ]*"):
        path.rename(pictures / path.name.lower())
    prepare(settings("folder", pictures), tmp_path / "again", threads=3)
    sets = [open_images(tmp_path / folder / "manifest.json") for folder in ("out", "again")]
    for split in ("train", "heldout"):
        first, second = (sorted(image.tobytes() for image in made.images[slice(*made.splits[split])]) for made in sets)
        assert first == second


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("cut.png", slice(0, -40), "expected a whole picture, found a damaged one"),
        ("cut.jpg", slice(0, 400), "expected a whole picture, found a damaged one"),
        ("empty.png", slice(0, 0), "expected a picture .PNG, .*, found a file that is none"),
        ("header.png", slice(0, 20), "found"),
    ],
)
def test_damaged_pictures_are_named_and_nothing_is_made(
    name: str, content: slice, said: str, pictures: Path, tmp_path: Path
) -> None:
    path = saved(pictures / "a" / name, Image.fromarray(noise(30, 40, 40, 3)))
    path.write_bytes(path.read_bytes()[content])
    with pytest.raises(
        UserError, match=f"{name}: .*{said}.*: of 17 pictures 1 cannot be used; replace or remove them"
    ) as error:
        prepare(settings("folder", pictures), tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out" / "images.npy").exists()


def test_what_does_not_suit_is_said_in_one_line(pictures: Path, tmp_path: Path) -> None:
    saved(pictures / "a" / "float.tif", Image.fromarray(GREY.astype(np.float32)))
    with pytest.raises(UserError, match="float.tif: expected 8 or 16 bits per channel, found 32"):
        prepare(settings("folder", pictures), tmp_path / "out")
    with pytest.raises(
        UserError,
        match=r"a/11.png: expected at least 18×18 pixels, found 16×19; .*; and 12 more: of 17 pictures 15 cannot be",
    ):
        prepare(settings("folder", pictures, side=18), tmp_path / "out")
    saved(pictures / "lone.png", Image.fromarray(COLOUR))
    with pytest.raises(UserError, match=r"lone.png: expected every picture in the folder of its class \(a, b, …\)"):
        prepare(settings("folder", pictures), tmp_path / "out")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"none: expected pictures \(.png, .jpg, .*\), found 0 files"):
        prepare(settings("folder", tmp_path / "none"), tmp_path / "out")
    with pytest.raises(UserError, match="nowhere: expected a folder of pictures, found none; data.path names it"):
        prepare(settings("folder", tmp_path / "nowhere"), tmp_path / "out")
    for index in range(3):
        saved(tmp_path / "one" / f"{index}.png", Image.fromarray(COLOUR))
    with pytest.raises(
        UserError, match="one: expected at least two different images, so that one can be held out, found 1"
    ):
        prepare(settings("folder", tmp_path / "one"), tmp_path / "out")


def test_links_are_followed_and_a_folder_inside_itself_is_entered_once(pictures: Path, tmp_path: Path) -> None:
    """A class that is a link to a folder elsewhere has its pictures, and so has a link to another class."""
    saved(tmp_path / "elsewhere" / "c.png", Image.fromarray(noise(40, SIDE, SIDE, 3)))
    (pictures / "c").symlink_to(tmp_path / "elsewhere")
    (pictures / "d").symlink_to(pictures / "a")
    (pictures / "a" / "again").symlink_to(pictures)
    prepare(settings("folder", pictures), tmp_path / "out")
    source = json.loads((tmp_path / "out" / "manifest.json").read_text())["source"]["user's files"]
    assert source["classes"] == ["a", "b", "c", "d"] and source["pictures"] > 17


@pytest.mark.parametrize("kind", ["broken link", "link to itself", "pipe", "foreign", "unreadable"])
def test_nothing_is_left_out_in_silence(
    kind: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, said = (
        pictures / "b" / "lost\n.png",
        r"b/lost\\n.png': expected a picture, found a broken link or no file; replace or remove it",
    )
    if kind == "broken link":
        path.symlink_to(tmp_path / "nowhere.png")
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "foreign":
        (pictures / "b" / "one.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
        said = (
            r"b/one.HEIC: expected a picture \(PNG, JPEG, .*, found a file that is none, or one of another kind: of 17 "
        )
        said += "pictures 1 cannot be used"
    else:  # permissions do not stop the administrator
        inside = Path.iterdir

        def refused(folder: Path):
            if folder.name == "deep":
                raise PermissionError(13, "Permission denied")
            return inside(folder)

        monkeypatch.setattr(Path, "iterdir", refused)
        said = "b/deep: expected a folder of pictures, found one that cannot be read: Permission denied"
    with pytest.raises(UserError, match=said) as error:
        prepare(settings("folder", pictures), tmp_path / "out")
    assert "\n" not in str(error.value)


def test_what_was_found_is_printed(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(settings("folder", pictures, heldout=0.5), tmp_path / "out")
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(
        f"{tmp_path / 'out'}: 16 images (train 8, heldout 8); pictures: 16; other files: 2; duplicates: 1; "
        "CMYK to RGB: 1;"
    )


def test_a_picture_that_cannot_be_read_is_named_and_not_the_file_that_is_written(tmp_path: Path) -> None:
    def read(name: str) -> tuple[np.ndarray, list[str]]:
        raise OSError(5, "Input/output error")

    made = LazyImages((2, 2, 1), {"train": ["a\n.png"]}, {}, read)
    with pytest.raises(
        UserError, match=r"^'a\\n.png': cannot be read: Input/output error: of 1 pictures 1 cannot be used"
    ):
        write_lazy_images(tmp_path, "one", made, threads=1)


def test_bytes_that_are_written_in_parts_all_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a network's file system."""
    whole = os.pwrite
    monkeypatch.setattr(
        os, "pwrite", lambda descriptor, content, at: whole(descriptor, content[: -(-len(content) // 2)], at)
    )
    write_lazy_images(tmp_path, "numbers", numbered(23, []), threads=2)
    assert open_images(tmp_path / "manifest.json").images.reshape(23, 4).tolist() == [
        [number] * 4 for number in range(23)
    ]


def test_one_hash_always_stays_to_train_on() -> None:
    assert split_by_hash(["b", "a", "c", "c"], 0.99, "x") == ([2, 3], [0, 1])
    assert split_by_hash(["b", "a", "b"], 0.01, "x") == ([0, 2], [1])


def numbered(count: int, seen: list[int], stop_at: int | None = None) -> LazyImages:
    """Images 2×2×1 of their number; `seen` gets what was read. At `stop_at` the run ends as by a key press."""

    def read(number: int) -> tuple[np.ndarray, list[str]]:
        if number == stop_at:
            raise KeyboardInterrupt
        seen.append(number)
        return np.full((2, 2, 1), number, np.uint8), ["odd"] if number % 2 else []

    parts = {"train": range(count), "heldout": range(0)}
    return LazyImages((2, 2, 1), parts, {"made of": count}, read, np.arange(count))


def test_preparation_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five images a piece: recorded pieces are not read again, a cut line is, and the files equal those of one run."""
    monkeypatch.setattr(convert_large, "PIECE", 20)
    write_lazy_images(tmp_path / "whole", "numbers", numbered(23, []), threads=3)
    first: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        write_lazy_images(tmp_path / "parts", "numbers", numbered(23, first, stop_at=16), threads=1)
    assert first[:16] == [*range(16)] and not (tmp_path / "parts" / "manifest.json").exists()
    journal = tmp_path / "parts" / ".images.npy.journal"
    journal.write_text(journal.read_text()[:-8])
    second: list[int] = []
    write_lazy_images(tmp_path / "parts", "numbers", numbered(23, second), threads=1)
    assert second == [*range(10, 23)]
    whole, parts = (
        {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()} for folder in ("whole", "parts")
    )
    assert whole == parts and set(whole) == {"images.npy", "labels.npy", "manifest.json"}
    assert json.loads(whole["manifest.json"])["source"] == {"made of": 23, "converted": {"odd": 11}}
    assert open_images(tmp_path / "parts" / "manifest.json").images[:, 0, 0, 0].tolist() == [*range(23)]


def test_a_run_of_other_files_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert_large, "PIECE", 20)
    with pytest.raises(KeyboardInterrupt):
        write_lazy_images(tmp_path, "numbers", numbered(23, [], stop_at=16), threads=1)
    seen: list[int] = []
    write_lazy_images(tmp_path, "numbers", numbered(22, seen), threads=1)
    assert seen == [*range(22)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"dataset": "folder", "channels": 3, "heldout": 0.1},
            "data: side: expected a value for the set folder, found none",
        ),
        ({"dataset": "folder", "side": 8, "channels": 3}, "data: heldout: expected a value for the set folder"),
        ({"dataset": "folder", "side": 8, "channels": 4, "heldout": 0.1}, "data: channels: "),
        ({"dataset": "arrays", "side": 8, "channels": 1, "name": "digits"}, "data: name: digits is another data set's"),
        ({"dataset": "arrays", "side": 8, "channels": 1, "name": "../x"}, "data: name: "),
        (
            {"dataset": "digits", "side": 16},
            "data: side: only the sets folder and arrays have it, digits is known; leave it out",
        ),
    ],
)
def test_settings_say_what_only_the_user_knows(content: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        validate(DataSettings, content, "data")
