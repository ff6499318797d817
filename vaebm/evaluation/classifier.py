"""A small classifier whose features measure image quality where there are no Inception weights.

Distances in its features are called after it (`FD-classifier`), never FID. Of stacks, whose channels are images of a labelled set
each, it judges the channels: it is trained on that set.
"""

from __future__ import annotations

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
from vaebm.system.checkpoint import hash_tensors, load_model, save_model
from vaebm.system.device import Progress, seeded
from vaebm.system.errors import UserError
from vaebm.system.files import write_json, writing

FEATURES = 64


def to_float(images: Tensor) -> Tensor:
    """Grey levels 0 to 255 as float32 in [0, 1], any shape."""
    return images.to(torch.float32) / 255


class Classifier(nn.Module):
    """Pairs of 3×3 convolutions, halved down to 4×4, then 64 features, then one logit a class.

    Args:
        channels: of the first pair of convolutions; doubled at every halving.
        shape: (C, H, W) of the images, H and W at least 4.
        classes: number of labels.
    """

    def __init__(self, channels: int, shape: tuple[int, int, int], classes: int):
        super().__init__()
        self.shape = shape
        inputs, height, width = shape
        layers: list[nn.Module] = []
        while True:
            for _ in range(2):
                layers += [nn.Conv2d(inputs, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
                inputs = channels
            if min(height, width) < 8:
                break
            layers.append(nn.MaxPool2d(2))
            height, width, channels = height // 2, width // 2, channels * 2
        self.body = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(inputs * height * width, FEATURES), nn.BatchNorm1d(FEATURES)
        )
        self.head = nn.Linear(FEATURES, classes)

    def features(self, images: Tensor) -> Tensor:
        """Features (B, 64), before their rectification, of `images` (B, C, H, W) in [0, 1]."""
        features: Tensor = self.body(images)
        return features

    def logits(self, features: Tensor) -> Tensor:
        """Logits (B, classes) of images with these features (B, 64)."""
        logits: Tensor = self.head(F.relu(features))
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of `images` (B, C, H, W) in [0, 1]."""
        return self.logits(self.features(images))


def load_classifier(path: Path | str) -> Classifier:
    """The classifier that `run` wrote, in eval mode, its weights frozen.

    Raises:
        UserError: no such file, or not a classifier.
    """
    content = load_model(path, "classifier")
    model = Classifier(
        content["network"]["channels"], tuple(content["network"]["shape"]), content["network"]["classes"]
    )
    model.load_state_dict(content["weights"])
    return model.eval().requires_grad_(False)


def _shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by −1, 0 or 1 pixel in each direction; what comes in from outside is 0."""
    count, _, height, width = images.shape
    top, left = torch.randint(0, 3, (2, count), generator=generator)
    rows = (top[:, None] + torch.arange(height))[:, None, :, None]
    columns = (left[:, None] + torch.arange(width))[:, None, None, :]
    padded = F.pad(images, (1, 1, 1, 1))
    channels = torch.arange(images.shape[1])[None, :, None, None]
    return padded[torch.arange(count)[:, None, None, None], channels, rows, columns]


@torch.no_grad()
def predict(model: Classifier, images: Tensor) -> Tensor:
    """Labels (N,) of uint8 images (N, C, H, W)."""
    return torch.cat([model(to_float(batch)).argmax(1) for batch in torch.split(images, 500)])


def train(images: ImageSet, settings: ClassifierSettings, seed: int) -> tuple[Classifier, list[dict[str, float]]]:
    """Train on the train split; every choice is a function of the seed, and the global generator is left as it was.

    Returns:
        The classifier in eval mode, and one record an epoch: step, loss, accuracy on the held-out images.
    """
    inputs, labels = images.split("train")
    held_out, held_out_labels = images.split("heldout")
    inputs = to_float(inputs)
    with seeded(derive(seed, "classifier", "weights")):
        model = Classifier(settings.channels, images.shape, int(images.labels.max()) + 1)
    generator = torch.Generator().manual_seed(derive(seed, "classifier", "order"))
    # the last, smaller batch is left out: batch norm has nothing to go by in a batch of one
    steps = max(len(inputs) // settings.batch, 1)
    optimiser = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=settings.learning_rate, total_steps=steps * settings.epochs
    )
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
    """Train the classifier; write `model`, and training.json, history.jsonl and pictures/ beside it.

    Args:
        settings: classifier.yaml, as `config.yaml_files.write_settings` wrote it.
        data: manifest of the labelled images.
        model: file to write.

    Raises:
        UserError: bad settings or data, images smaller than 4×4, or a training that ended without a finite loss.
    """
    seed, chosen = read_settings(settings, ClassifierSettings)
    images = open_images(data)
    if min(images.shape[1:]) < 4:
        raise UserError(f"{data}: expected images of at least 4×4, found {images.shape[1]}×{images.shape[2]}")
    trained, history = train(images, chosen, seed)
    if not math.isfinite(history[-1]["loss"]):
        raise UserError(
            f"{settings}: the training diverged (loss {history[-1]['loss']}); choose a smaller learning_rate than {chosen.learning_rate}"
        )
    held_out, labels = images.split("heldout")
    predicted = predict(trained, held_out)
    wrong = (predicted != labels).nonzero().flatten()
    with writing(model.with_name("history.jsonl")) as stream:
        stream.write("".join(json.dumps(record) + "\n" for record in history).encode())
    pictures = model.parent / "pictures"
    panels = {"Cross-entropy, training": ["loss"], "Accuracy, held out": ["accuracy"]}
    plots.training_curves(model.with_name("history.jsonl"), pictures / "curves.png", panels)
    counts = np.zeros((int(images.labels.max()) + 1,) * 2, dtype=np.int64)
    np.add.at(counts, (labels.numpy(), predicted.numpy()), 1)
    plots.confusion(counts, pictures / "confusion.png")
    network = {"channels": chosen.channels, "shape": list(images.shape), "classes": int(images.labels.max()) + 1}
    weights = trained.state_dict()
    record = {
        "status": "finished",
        "seed": seed,
        "data": images.hash,
        "model": hash_tensors(weights),
        "accuracy": history[-1]["accuracy"],
        "heldout": len(labels),
        "wrong": len(wrong),
    }
    write_json(model.with_name("training.json"), record)
    save_model(model, "classifier", network, weights)
