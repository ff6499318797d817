"""The classifier whose features measure image quality."""

import json

import pytest
import torch
import yaml

from vaebm.config import ClassifierSettings
from vaebm.data import open_images, write_images
from vaebm.data.digits import prepare_digits
from vaebm.evaluation import classifier
from vaebm.evaluation.classifier import Classifier, to_float
from vaebm.system.checkpoint import hash_tensors, save_model
from vaebm.system.errors import UserError

SETTINGS = ClassifierSettings(channels=4, epochs=4, batch=50, learning_rate=0.01)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "digits"
    images, labels, splits, source = prepare_digits()
    write_images(folder, "digits", images, labels, splits, source)
    return folder / "manifest.json"


@pytest.fixture(scope="module")
def trained(manifest, tmp_path_factory):
    """Folder of a classifier that the stage trained."""
    folder = tmp_path_factory.mktemp("classifier")
    (folder / "classifier.yaml").write_text(yaml.safe_dump({"seed": 0, "classifier": SETTINGS.model_dump()}))
    classifier.run(folder / "classifier.yaml", manifest, folder / "model.pt")
    return folder


def test_the_recorded_accuracy_is_that_of_the_published_model(trained, manifest):
    images, labels = open_images(manifest).split("heldout")
    model = classifier.load_classifier(trained / "model.pt")
    right = (model(to_float(images)).argmax(1) == labels).sum().item()
    record = json.loads((trained / "training.json").read_text())
    assert record["wrong"] == len(labels) - right
    assert record["accuracy"] == pytest.approx(right / len(labels))
    # a hundred chosen by chance would have 10 right; even four epochs of four channels learn the digits
    assert record["accuracy"] > 0.8
    history = [json.loads(line) for line in (trained / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in history] == [30, 60, 90, 120]
    assert history[-1]["loss"] < history[0]["loss"]
    assert (trained / "pictures" / "curves.png").is_file()


def test_loaded_model_is_frozen_and_one_image_is_enough(trained):
    model = classifier.load_classifier(trained / "model.pt")
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    image = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert model.features(image).shape == (1, 64) and model(image).shape == (1, 10)


def test_further_networks_vote_and_have_no_features(manifest, tmp_path):
    """The first network is that of a classifier without further ones; the others come from other seeds."""
    short = SETTINGS.model_copy(update={"epochs": 1})
    for networks in (1, 3):
        settings = short.model_copy(update={"networks": networks}).model_dump()
        (tmp_path / "classifier.yaml").write_text(yaml.safe_dump({"seed": 0, "classifier": settings}))
        classifier.run(tmp_path / "classifier.yaml", manifest, tmp_path / f"{networks}.pt")
    alone, several = (classifier.load_classifier(tmp_path / f"{networks}.pt") for networks in (1, 3))
    images, truth = open_images(manifest).split("heldout")
    images = to_float(images)
    assert torch.equal(alone.features(images), several.features(images))
    labels = several.labels(images, several(images))
    assert labels.shape == (len(images), 3) and torch.equal(labels[:, :1], alone.labels(images, alone(images)))
    assert not torch.equal(labels[:, 0], labels[:, 1]) and not torch.equal(labels[:, 1], labels[:, 2])
    record = json.loads((tmp_path / "training.json").read_text())
    assert [record["wrong"], *record["further_wrong"]] == (labels != truth[:, None]).sum(0).tolist()


def test_training_is_a_function_of_its_seed_and_leaves_the_global_generator(manifest):
    images, short = open_images(manifest), SETTINGS.model_copy(update={"epochs": 1})
    torch.manual_seed(5)
    first, state = classifier.train_classifier(images, short, seed=0)[0], torch.get_rng_state()
    torch.manual_seed(6)
    again = classifier.train_classifier(images, short, seed=0)[0]
    other = classifier.train_classifier(images, short, seed=1)[0]
    assert hash_tensors(first.state_dict()) == hash_tensors(again.state_dict()) != hash_tensors(other.state_dict())
    torch.manual_seed(5)
    assert torch.equal(state, torch.get_rng_state())


def test_held_out_labels_are_only_looked_at(manifest):
    """Other labels of the held-out images change the reported accuracy and no weight."""
    images, short = open_images(manifest), SETTINGS.model_copy(update={"epochs": 1})
    first, held_out = images.splits["heldout"]
    labels = images.labels.copy()
    labels[first:held_out] = (labels[first:held_out] + 1) % 10
    import dataclasses

    model, history = classifier.train_classifier(images, short, seed=0)
    wronged, wronged_history = classifier.train_classifier(dataclasses.replace(images, labels=labels), short, seed=0)
    assert hash_tensors(model.state_dict()) == hash_tensors(wronged.state_dict())
    assert history[-1]["accuracy"] != wronged_history[-1]["accuracy"]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 4, 4), (3, 12, 20)])
def test_64_features_for_images_of_any_size(shape):
    model = Classifier(4, shape, 7).eval()
    assert model.features(torch.zeros(3, *shape)).shape == (3, 64)
    assert model(torch.zeros(3, *shape)).shape == (3, 7)


def test_shifts_move_images_by_at_most_a_pixel_and_fill_with_black():
    images = torch.rand(200, 2, 5, 6, generator=torch.Generator().manual_seed(0)) + 1
    shifted = classifier._shift(images, torch.Generator().manual_seed(1))
    seen = set()
    for image, moved in zip(images, shifted, strict=True):
        fitting = []
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                expected = torch.zeros_like(image)
                rows, columns = slice(max(down, 0), 5 + min(down, 0)), slice(max(right, 0), 6 + min(right, 0))
                rows_from, columns_from = (
                    slice(max(-down, 0), 5 + min(-down, 0)),
                    slice(max(-right, 0), 6 + min(-right, 0)),
                )
                expected[:, rows, columns] = image[:, rows_from, columns_from]
                if torch.equal(expected, moved):
                    fitting.append((down, right))
        assert len(fitting) == 1
        seen.add(fitting[0])
    assert len(seen) == 9, "all directions occur"


def test_bytes_become_floats_by_255():
    assert to_float(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0.0, 0.2, 1.0])


def test_mistakes_are_one_line(tmp_path, manifest, trained):
    with pytest.raises(UserError, match="found no file"):
        classifier.load_classifier(tmp_path / "model.pt")
    network = {"channels": 4, "shape": [1, 8, 8], "classes": 10}
    for number, (other, weights) in enumerate(
        ((network, {}), (network | {"gone": 1}, Classifier(**network).state_dict()))
    ):
        save_model(tmp_path / f"{number}.pt", "classifier", other, weights)
        with pytest.raises(UserError, match=f"^[^\n]*{number}.pt: expected a classifier of this version, found[^\n]*$"):
            classifier.load_classifier(tmp_path / f"{number}.pt")
    images, labels, splits, source = prepare_digits()
    write_images(tmp_path / "small", "small", images[:, :3, :3], labels, splits, source)
    with pytest.raises(UserError, match="at least 4×4, found 3×3"):
        classifier.run(trained / "classifier.yaml", tmp_path / "small" / "manifest.json", tmp_path / "model.pt")
    hot = SETTINGS.model_copy(update={"epochs": 1, "learning_rate": 1e38})
    (tmp_path / "classifier.yaml").write_text(yaml.safe_dump({"seed": 0, "classifier": hot.model_dump()}))
    with pytest.raises(UserError, match="diverged.*smaller learning_rate"):
        classifier.run(tmp_path / "classifier.yaml", manifest, tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists(), "nothing half-written is taken for a result"
