"""A small classifier whose features measure image quality without Inception weights.

Distances in its features are named after it (`FD-classifier`), never FID. For stacks, it is trained on the labelled set
of their channels and applied to each channel.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaebm import plots
from vaebm.config import ClassifierSettings
from vaebm.config.yaml_files import read_settings
from vaebm.data import ImageSet, open_images
from vaebm.noise import derive
from vaebm.records.files import write_record
from vaebm.records.training import ClassifierRecord
from vaebm.system.checkpoint import hash_tensors, load_model, of_this_version, save_model
from vaebm.system.device import Progress, freeze, seeded, to_device_channels_last
from vaebm.system.errors import UserError
from vaebm.system.files import writing

CLASSIFIER_FEATURES = 64

MOST_IN_CONFUSION = 100
"""Classes up to which a confusion matrix can be read."""


def to_float(images: Tensor) -> Tensor:
    """Convert 0 to 255 to float32 in [0, 1], any shape."""
    return images.to(torch.float32) / 255


class Classifier(nn.Module):
    """Pairs of 3×3 convolutions, pooled down to 4×4, then 64 features, then one logit per class.

    Every pooling doubles the `channels` of the first pair. Images are of `shape` (C, H, W), H and W at least 4. The
    `further` networks, of the same kind, are used by `labels` alone.
    """

    def __init__(self, channels: int, shape: tuple[int, int, int], classes: int, further: int = 0):
        super().__init__()
        self.further = nn.ModuleList(Classifier(channels, shape, classes) for _ in range(further))
        self.shape = inputs, height, width = tuple(shape)
        layers: list[nn.Module] = []
        while True:
            for _ in range(2):
                layers += [nn.Conv2d(inputs, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
                inputs = channels
            if min(height, width) < 8:
                break
            layers.append(nn.MaxPool2d(2))
            height, width, channels = height // 2, width // 2, channels * 2
        layers += [nn.Flatten(), nn.Linear(inputs * height * width, CLASSIFIER_FEATURES)]
        self.body = nn.Sequential(*layers, nn.BatchNorm1d(CLASSIFIER_FEATURES))
        self.head = nn.Linear(CLASSIFIER_FEATURES, classes)

    def features(self, images: Tensor) -> Tensor:
        """Features (B, 64), before the ReLU, of `images` (B, C, H, W) in [0, 1]."""
        return self.body(images)

    def logits(self, features: Tensor) -> Tensor:
        """Logits (B, classes) of features (B, 64)."""
        return self.head(F.relu(features))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of `images` (B, C, H, W) in [0, 1]."""
        return self.logits(self.features(images))

    def labels(self, images: Tensor, logits: Tensor) -> Tensor:
        """Labels (B, networks) of `images` (B, C, H, W) in [0, 1], with this network's `logits`, by each network."""
        return torch.stack([each.argmax(1) for each in (logits, *(network(images) for network in self.further))], dim=1)


def load_classifier(path: Path | str) -> Classifier:
    """Load the output of `run`, in eval mode, frozen.

    Raises:
        UserError: no such file, or not a classifier of this version.
    """
    content = load_model(path, "classifier")
    with of_this_version(path, "a classifier"):
        model = Classifier(**content["network"])
        model.load_state_dict(content["weights"])
    return freeze(model, "cpu")


def _shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by −1, 0 or 1 pixel in each direction, padded with 0."""
    count, _, height, width = images.shape
    top, left = torch.randint(0, 3, (2, count), generator=generator)
    windows = F.pad(images, (1, 1, 1, 1)).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(count), :, top, left]


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Predicted labels (N,) of uint8 images (N, C, H, W)."""
    return torch.cat([model(to_float(batch)).argmax(1) for batch in torch.split(images, 500)])


def train_classifier(
    images: ImageSet, settings: ClassifierSettings, seed: int
) -> tuple[Classifier, list[dict[str, float]]]:
    """Train on the train split; deterministic in the seed, without use of the global generator.

    Return the classifier in eval mode, and for each epoch step, loss, and accuracy on the held-out images.
    """
    inputs, labels = images.split("train")
    held_out, held_out_labels = images.split("heldout")
    inputs = to_float(inputs)
    with seeded(derive(seed, "classifier", "weights")):
        model = Classifier(settings.channels, images.shape, int(images.labels.max()) + 1)
    to_device_channels_last(model, torch.device("cpu"))
    generator = torch.Generator().manual_seed(derive(seed, "classifier", "order"))
    # the last, smaller batch is dropped: batch norm is undefined for a batch of one
    steps = max(len(inputs) // settings.batch, 1)
    optimiser = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, weight_decay=1e-4, fused=True)
    total_steps = steps * settings.epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=settings.learning_rate, total_steps=total_steps)
    progress = Progress("classifier", settings.epochs, unit="epoch")
    history = []
    for epoch in range(settings.epochs):
        model.train()
        total = torch.zeros(())
        for chosen in torch.split(torch.randperm(len(inputs), generator=generator), settings.batch)[:steps]:
            loss = F.cross_entropy(model(_shift(inputs[chosen], generator)), labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.detach()
        accuracy = (predict(model.eval(), held_out) == held_out_labels).float().mean()
        history.append({"step": float((epoch + 1) * steps), "loss": float(total) / steps, "accuracy": float(accuracy)})
        progress.advance({name: history[-1][name] for name in ("loss", "accuracy")})
    progress.close()
    return model.requires_grad_(False), history


def run(settings: Path, data: Path, model: Path) -> None:
    """Train the classifier on labelled images; write `model`, training.json, history.jsonl and pictures/ in one folder.

    Raises:
        UserError: bad settings or data, images smaller than 4×4, or a training that ended without a finite loss.
    """
    seed, chosen = read_settings(settings, ClassifierSettings)
    images = open_images(data)
    if min(images.shape[1:]) < 4:
        raise UserError(f"{data}: expected images of at least 4×4, found {images.shape[1]}×{images.shape[2]}")
    trained, history = train_classifier(images, chosen, seed)
    for number in range(1, chosen.networks):
        trained.further.append(train_classifier(images, chosen, derive(seed, "further classifier", number))[0])
    if not math.isfinite(history[-1]["loss"]):
        raise UserError(
            f"{settings}: the training diverged (loss {history[-1]['loss']}); "
            f"choose a smaller learning_rate than {chosen.learning_rate}"
        )
    held_out, labels = images.split("heldout")
    predicted = predict(trained, held_out)
    history_file, pictures = model.with_name("history.jsonl"), model.parent / "pictures"
    with writing(history_file) as stream:
        stream.write("".join(json.dumps(record) + "\n" for record in history).encode())
    panels = {"Cross-entropy, training": ["loss"], "Accuracy, held out": ["accuracy"]}
    plots.training_curves(history_file, pictures / "curves.png", panels)
    occurring = np.unique(np.concatenate([images.labels, predicted.numpy()]))
    if len(occurring) <= MOST_IN_CONFUSION:
        counts = np.zeros((len(occurring),) * 2, np.int64)
        np.add.at(counts, tuple(np.searchsorted(occurring, each.numpy()) for each in (labels, predicted)), 1)
        plots.confusion(counts, pictures / "confusion.png", occurring)
    network = {"channels": chosen.channels, "shape": list(images.shape), "classes": trained.head.out_features}
    if trained.further:
        network["further"] = len(trained.further)
    weights = trained.state_dict()
    record = ClassifierRecord(
        status="finished", seed=seed, data=images.hash, model=hash_tensors(weights),
        accuracy=history[-1]["accuracy"], heldout=len(labels), wrong=int((predicted != labels).sum()),
        further_wrong=[int((predict(each, held_out) != labels).sum()) for each in trained.further],
    )  # fmt: skip
    write_record(model.with_name("training.json"), record)
    save_model(model, "classifier", network, weights)
