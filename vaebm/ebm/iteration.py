"""One training iteration of the energy: contrastive divergence on a frozen NVAE (VAEBM section 3.1, algorithm 1)."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vaebm.config import EBMSettings
from vaebm.ebm.ahead import Ahead
from vaebm.ebm.contrastive_divergence import (
    ContrastiveDivergence,
    WeightAverage,
    adaptive_clip,
    contrastive_divergence,
    positives,
)
from vaebm.ebm.replay_buffer import ReplayBuffer
from vaebm.energy.noise_energy import NoiseEnergy
from vaebm.model import build_model
from vaebm.noise import NoiseSource, derive
from vaebm.nvae.flat_parameters import FlatParameters
from vaebm.nvae.layers import convolution_weights
from vaebm.nvae.model import NVAE
from vaebm.system import distributed
from vaebm.system.precision import chain_dtype
from vaebm.system.shapes import Images
from vaebm.training.loop import Stateful, training_batch
from vaebm.training.spectral import SpectralPenalty


def initialize(energy: nn.Module, nvae: NVAE, images: Tensor, stage: EBMSettings, seed: int) -> None:
    """Initialise the energy from the first five batches of the training images (N, C, H, W) uint8.

    A network of a plug-in that has no method `initialize` stays as it is.
    """
    if (begin := getattr(energy, "initialize", None)) is None:
        return
    batch, flip = stage.training.batch, stage.training.flip
    batches = range(min(5, len(images) // batch))
    first = torch.cat([training_batch(images, step, batch, derive(seed, "ebm"), flip) for step in batches])
    own = distributed.local_shard(range(len(first)))
    begin(positives(nvae, first[own.start : own.stop], stage, NoiseSource(seed, "initial positives", own)))


SMALL = 2**13
"""Values of a batch of images below which most of an operation's time does not depend on their number."""


def own_indices(steps: Iterable[int], batch: int) -> list[int]:
    """Global indices of this process's chains in these iterations, with `batch` chains of all processes in each."""
    return [index for step in steps for index in distributed.local_shard(range(step * batch, (step + 1) * batch))]


def local_part(images: Tensor) -> Tensor:
    """This process's part of a global batch."""
    part = distributed.local_shard(range(len(images)))
    return images[part.start : part.stop]


class Iteration(NamedTuple):
    """Values of one iteration before its update, over the global batch, equal in all processes."""

    loss: float
    """Contrastive divergence with the penalties on energies and gradients, without the spectral penalty."""
    gap: float
    """mean E(data) − mean E(chains)."""
    spread: float
    """Standard deviation of the energies around these two means."""
    gradient_norm: float
    """Norm of the whole gradient before clipping."""
    energy_data: float
    """Mean energy of the data."""
    energy_chains: float
    """Mean energy of the chains' images."""
    spectral: float
    """Sum of the largest singular values."""


class EBMTrainer:
    """The energy and all other state that an iteration changes, on a frozen NVAE in eval mode.

    The energy is initialised, with the NVAE's device and dtype. A frozen `prior`, an energy on noise, is part of the
    potential and of the chains' starts.
    """

    def __init__(self, nvae: NVAE, energy: nn.Module, stage: EBMSettings, seed: int, prior: NoiseEnergy | None = None):
        self.energy, self.stage, self.seed = energy, stage, seed
        self.vaebm = build_model(nvae, energy, stage.potential, stage.start, stage.positives, prior)
        self.vaebm.chain_dtype = chain_dtype(stage.training.precision)
        self.nvae = nvae
        training = stage.training
        penalty = SpectralPenalty(convolution_weights(energy), derive(seed, "spectral"))
        self.spectral = penalty.to(nvae.device, nvae.dtype)
        self.flat = FlatParameters(energy)  # one vector of all parameters: clips and Adam take few operations
        self.parameters = self.flat.parameters
        self.optimizer = self.flat.optimizer(
            torch.optim.Adam,
            lr=training.learning_rate,
            betas=(training.beta1, training.beta2),
            weight_decay=training.weight_decay,
        )
        self.average = WeightAverage(self.parameters, training.average_decay)
        self.parts: dict[str, Stateful] = {
            "energy": energy,
            "spectral": self.spectral,
            "optimizer": self.optimizer,
            "average": self.average,
        }
        self.ends: list[Tensor] = []  # ε_z at the ends of the last chains, for the replay buffer
        self._starts, self._positives = Ahead(), Ahead()
        self.restarts = 0
        self._begin()

    def _begin(self) -> None:
        """Start with an empty replay buffer and, after a restart, with other noise and batches."""
        self.noise_seed = derive(self.seed, "restart", self.restarts) if self.restarts else self.seed
        self._negatives: tuple[int, Tensor] | None = None  # of the iterations from this number on: (iterations, B, …)
        self.buffer = None
        if (replay := self.stage.replay) is not None:
            self.buffer = ReplayBuffer(replay, self.vaebm.latent_shapes, self.noise_seed, self.nvae.dtype)

    def batch(self, step: int, images: Tensor) -> Tensor:
        """The global batch of iteration `step` from all training images (N, C, H, W) uint8."""
        training = self.stage.training
        return training_batch(images, step, training.batch, derive(self.noise_seed, "ebm"), training.flip)

    def positives(self, step: int, images: Tensor) -> Images | None:
        """This process's positives of iteration `step`, computed for `AHEAD` iterations at once.

        None where that saves no time: for large batches, and for positives without noise. `images` are all training
        images, (N, C, H, W) uint8.
        """
        batch = self.stage.training.batch
        if self.stage.positives == "clean" or batch * images[0].numel() > SMALL:
            return None

        def compute(steps: Iterable[int]) -> list[Tensor]:
            own = torch.cat([local_part(self.batch(each, images)) for each in steps])
            noise = NoiseSource(self.noise_seed, "positives", own_indices(steps, batch))
            return [positives(self.nvae, own, self.stage, noise)]

        return self._positives.of(step, (self.noise_seed, images.data_ptr(), len(images)), compute)[0]

    def negatives(self, step: int, images: Tensor) -> Images | None:
        """This process's negatives of iteration `step`, computed for `chain_every` iterations with the present energy.

        None where each iteration has its own call of the chain. `images` are all training images, (N, C, H, W) uint8.
        """
        if (every := self.stage.training.chain_every) == 1:
            return None
        if self._negatives is None or step - self._negatives[0] not in range(every):
            parts = {each: local_part(self.batch(each, images)) for each in range(step, step + every)}
            with self.flat.normalized_weights():
                self._negatives = step, self._chains(parts).contiguous().unflatten(0, (every, -1))
        first, negatives = self._negatives
        return negatives[step - first]

    def _chains(self, parts: dict[int, Tensor]) -> Images:
        """Images at the ends of this process's chains; number of an iteration → this process's part of its batch."""
        batch = len(next(iter(parts.values()))) * distributed.world_size()
        noise = NoiseSource(self.noise_seed, "chain", own_indices(parts, batch))
        # 1. start of the chains
        starts = [self.start(own, step, noise.at(own_indices([step], batch))) for step, own in parts.items()]
        eps_z = [torch.cat(group) for group in zip(*(start for start, _ in starts), strict=True)]
        eps_x = torch.cat([start for _, start in starts])
        # 2. K Langevin steps, without gradient for the energy's weights
        self.flat.requires_grad_(False)
        self.ends, eps_x = self.vaebm.refine(eps_z, eps_x, chain=self.stage.chain, noise=noise)
        self.flat.requires_grad_(True)
        with torch.no_grad():
            pixels = self.vaebm.decoder.decode(self.ends)[0]
            return pixels.mean if self.stage.negatives == "mean" else pixels.sample(eps_x)

    def gradients(
        self, images: Tensor, step: int, positive: Images | None = None, negative: Images | None = None
    ) -> Iteration:
        """Compute the gradient that `update` applies.

        Args:
            images: the global batch, (batch, C, H, W) uint8.
            step: number of the iteration, from 0.
            positive: this process's `positives`; None: compute those of this iteration.
            negative: this process's `negatives`; None: compute those of this iteration.
        """
        stage, energy, own = self.stage, self.energy, local_part(images)
        self.flat.zero_gradients()
        with self.flat.normalized_weights():
            if negative is None:
                negative = self._chains({step: own})

            # 3. energies of the data and of the chains' images
            if positive is None:
                noise = NoiseSource(self.noise_seed, "positives", own_indices([step], len(images)))
                positive = positives(self.nvae, own, stage, noise)
            penalties = stage.training.energy_penalty, stage.training.gradient_penalty
            parts = contrastive_divergence(energy, positive, negative, *penalties)

            # 4. gradient of the loss and the spectral penalty, over the global batch
            penalty = self.spectral()
            (parts.loss + stage.training.spectral_weight * penalty).backward()
        distributed.average_gradients(self.flat.tensors)

        # values for log, history and guard
        energies = torch.stack([parts.positive, parts.negative]).detach()
        data, chains = distributed.gather(energies).transpose(0, 1).flatten(1)
        whole = ContrastiveDivergence(distributed.mean(parts.loss), data, chains)
        norm = torch.nn.utils.get_total_norm([each.grad for each in self.flat.tensors if each.grad is not None])
        values = [whole.loss, whole.gap, whole.spread, norm, data.mean(), chains.mean(), penalty.detach()]
        return Iteration(*torch.stack(values).tolist())

    @torch.no_grad()
    def start(self, images: Tensor, step: int, noise: NoiseSource) -> tuple[list[Tensor], Tensor]:
        """Start noise of this process's chains: ε_z, one tensor per latent group, and ε_x.

        In the global batch the first chains are replayed, the last ones start at posterior draws for their training
        images, the others at prior draws. ε_x is always new. `images` (B, C, H, W) uint8 are this process's part.
        """
        eps_z, eps_x = self._initial_noise(step, noise)
        batch = len(images) * distributed.world_size()
        encoded = batch - round(self.stage.encoded * batch)  # first encoded chain, by its place in the global batch
        encoded = max(encoded - distributed.local_shard(range(batch)).start, 0)  # and among this process's chains
        if encoded < len(images):
            source = NoiseSource(noise.seed, "encoded", noise.index[encoded:])
            draws = self.nvae(self.nvae.as_input(images[encoded:]), noise=source).draws
            eps_z = [torch.cat([new[:encoded], draw.eps]) for new, draw in zip(eps_z, draws, strict=True)]
        return (eps_z if self.buffer is None else self.buffer.start(eps_z, step)), eps_x

    def _initial_noise(self, step: int, noise: NoiseSource) -> tuple[list[Tensor], Tensor]:
        """`VAEBM.initial_noise`; with an energy on noise for `AHEAD` iterations at once, in less than half the time."""
        if self.vaebm.prior is None:
            return self.vaebm.initial_noise(noise)

        def compute(steps: Iterable[int]) -> list[Tensor]:
            index = own_indices(steps, len(noise.index) * distributed.world_size())
            eps_z, eps_x = self.vaebm.initial_noise(noise.at(index))
            return [*eps_z, eps_x]

        *eps_z, eps_x = self._starts.of(step, (noise.seed, len(noise.index)), compute)
        return eps_z, eps_x

    def update(self, rate: float) -> None:
        """Apply the gradient at this learning rate, and store the ends of the chains for replay."""
        training = self.stage.training
        # 5. clipping: per element by its history, then by the total norm
        if training.adaptive_clip:
            adaptive_clip(self.optimizer)
        if training.gradient_norm_limit is not None:
            torch.nn.utils.clip_grad_norm_(self.flat.tensors, training.gradient_norm_limit)

        # 6. Adam with L2 decay, and the average of the weights
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        self.average.update()

        # 7. the replay buffer
        if self.buffer is not None:
            self.buffer.insert(self.ends)

    def restart(self, snapshot: dict[str, Any]) -> None:
        """Restore a snapshot, with another seed and an empty replay buffer."""
        self.load_state_dict(snapshot | {"restarts": self.restarts + 1, "buffer": None})

    def snapshot(self) -> dict[str, Any]:
        """State for a restart: weights, their average, optimiser, singular vectors; tensors are shared, not copies."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def model(self, snapshot: dict[str, Any]) -> dict[str, Tensor]:
        """The averaged weights of the energy in a snapshot."""
        names = [name for name, _ in self.energy.named_parameters()]
        return dict(zip(names, snapshot["average"]["mean"], strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The snapshot, the number of restarts, the replay buffer, and the negatives of the iterations to come."""
        buffer, negatives = None if self.buffer is None else self.buffer.state_dict(), None
        if self._negatives is not None:
            shares = distributed.gather_to_rank0(self._negatives[1])
            negatives = self._negatives[0], None if shares is None else shares.transpose(0, 1).flatten(1, 2)
        return self.snapshot() | {"restarts": self.restarts, "buffer": buffer, "negatives": negatives}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state exactly."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self.restarts = state["restarts"]
        self._begin()
        if state.get("negatives"):  # not in a snapshot, nor in a checkpoint of an earlier version
            first, negatives = state["negatives"]
            self._negatives = first, torch.stack([*map(local_part, negatives)]).to(self.nvae.device)
        if self.buffer is not None and state["buffer"] is not None:
            self.buffer.load_state_dict(state["buffer"])
