"""Stage `ebm`: training of the energy network on a frozen NVAE (VAEBM section 3.1)."""

import math
from pathlib import Path

from torch import Tensor

from vaebm.config import EBMSettings, EBMTrainingSettings
from vaebm.config.base import plugins_in
from vaebm.config.yaml_files import read_settings
from vaebm.data import ImageSet, open_images
from vaebm.ebm.divergence_guard import Guard
from vaebm.ebm.iteration import EBMTrainer, Iteration, initialize
from vaebm.ebm.plots import save_ebm_plots
from vaebm.ebm.selection import select
from vaebm.ebm.snapshots import BEGINNING, Snapshot, Snapshots
from vaebm.energy.network import build_energy
from vaebm.energy.noise_energy import load_prior
from vaebm.noise import derive
from vaebm.nvae.model import NVAE, check_decoder, load_frozen
from vaebm.records.training import Selection
from vaebm.system import distributed
from vaebm.system.checkpoint import hash_tensors, load_model, save_model
from vaebm.system.device import seeded, setup_device, to_device_channels_last
from vaebm.system.errors import UserError
from vaebm.system.precision import set_precision
from vaebm.training.loop import Limits, Stateful, Training, training_images


def energy_learning_rate(step: int, training: EBMTrainingSettings) -> float:
    """Learning rate of a step: constant as published, or a cosine to zero."""
    if training.learning_rate_decay == "none":
        return training.learning_rate
    return 0.5 * training.learning_rate * (1.0 + math.cos(math.pi * step / training.iterations))


def run(
    settings: Path,
    data: Path,
    nvae: Path,
    model: Path,
    prior: Path | None = None,
    *,
    threads: int,
    gpus: int,
    limits: Limits,
) -> None:
    """Train the energy; write `model`, training.json, history.jsonl and pictures in one folder.

    A diverged training restarts from its last good snapshot, up to the number of restarts, then stops. The model is one
    of the last good snapshots; training.json records the events and the selection.

    Args:
        settings: ebm.yaml.
        data: manifest of the prepared images.
        nvae: model file of the NVAE.
        model: file that is written.
        prior: model file of the energy on noise; None: there is none.
        threads: CPU threads of this process.
        gpus: GPUs of the job; 0: the CPU.
        limits: time limit and interval of checkpoints.

    Raises:
        UserError: images that do not fit the NVAE or the batch, or divergence before the first good snapshot.
        Interrupted: stopped in time, to be resumed.
    """
    # 1. settings, NVAE and training images
    device = setup_device(threads, gpus, join=True)
    seed, stage = read_settings(settings, EBMSettings)
    training = stage.training
    set_precision(training.precision, device, f"{settings}: ebm.training.precision")
    distributed.check_share(training.batch, f"{settings}: ebm.training.batch")
    dataset = open_images(data)
    vae, vae_hash = load_frozen(nvae, dataset.shape, device)
    check_decoder(vae, nvae)
    images = training_images(dataset, device, training.batch, f"{settings}: ebm.training.batch")

    # 2. the loop, resumed from the last checkpoint of the same identity
    trainer = build_trainer(vae, prior, images, stage, seed)
    guard, snapshots = Guard(stage.guard), Snapshots(stage.guard.patience, stage.selection.candidates)
    identity = {"seed": seed, "settings": stage.model_dump(), "data": dataset.hash, "nvae": vae_hash}
    below = {} if prior is None else {"prior": load_model(prior, "prior")["hash"]}  # also in the model file
    identity |= below
    parts: dict[str, Stateful] = {"trainer": trainer, "guard": guard, "snapshots": snapshots}
    run_state = Training("ebm", model.parent, identity, training.iterations, parts, limits)
    snapshots.folder = run_state.scratch / "snapshots"
    events = run_state.extra.setdefault("events", [])
    run_iterations(trainer, images, run_state, guard, snapshots)
    usable = usable_snapshots(snapshots, guard, run_state, settings)
    if distributed.rank() != 0:
        return

    # 3. the model: the best of the last good snapshots
    selection, weights = select_model(trainer, snapshots, usable, dataset)
    status = f"diverged at iteration {run_state.step}: {guard.reason}" if guard.bad else "finished"
    print(f"ebm: {status}; the model is the snapshot of iteration {selection.chosen}", flush=True)

    # 4. pictures, model file and training.json
    diagnostics = save_ebm_plots(trainer.vaebm, dataset, run_state, stage, seed)
    origin = {"potential": stage.potential, "start": stage.start, "positives": stage.positives}
    save_model(model, "energy", stage.network.model_dump(), weights, shape=list(dataset.shape), **origin, **below)
    run_state.finish(
        status=status,
        plugins=sorted(plugins_in(stage)),
        snapshot=selection.chosen,
        events=events,
        selection=selection,
        diagnostics=diagnostics,
        parameters=sum(p.numel() for p in trainer.energy.parameters()),
        model=hash_tensors(weights),
        device=str(device),
        threads=threads,
        processes=distributed.world_size(),
    )


def build_trainer(nvae: NVAE, prior: Path | None, images: Tensor, stage: EBMSettings, seed: int) -> EBMTrainer:
    """Build the networks and all that an iteration changes.

    Args:
        nvae: the frozen NVAE, on the device of the training.
        prior: model file of the energy on noise; None: there is none.
        images: training images (N, C, H, W) uint8; the energy is initialised on some of them.
        stage: settings of the stage.
        seed: seed of the run.
    """
    device = nvae.device
    with seeded(derive(seed, "energy")):
        energy = build_energy(stage.network, images.shape[1])
    on_noise = None if prior is None else load_prior(prior, device)
    if stage.training.precision == "float64":
        nvae, energy, on_noise = nvae.double(), energy.double(), on_noise and on_noise.double()
    initialize(to_device_channels_last(energy, device), nvae, images, stage, seed)
    return EBMTrainer(nvae, energy, stage, seed, on_noise)


def usable_snapshots(snapshots: Snapshots, guard: Guard, run_state: Training, settings: Path) -> list[Snapshot]:
    """The good snapshots whose files are there, at least one.

    Raises:
        UserError: there is none.
    """
    if usable := snapshots.usable:
        return usable
    if snapshots.good:
        raise UserError(
            f"{snapshots.folder}: expected the good snapshots, found none of them; remove "
            f"{run_state.scratch} and run again, from the beginning"
        )
    reason = guard.last_reason or "none was followed by good iterations (ebm.guard)"
    raise UserError(
        f"{settings}: the energy diverged at iteration {run_state.step}, before its first good snapshot: "
        f"{reason}; choose a smaller ebm.training.learning_rate or snapshot_every, "
        "or a larger spectral_weight, energy_penalty or gradient_penalty"
    )


def select_model(
    trainer: EBMTrainer, snapshots: Snapshots, usable: list[Snapshot], dataset: ImageSet
) -> tuple[Selection, dict[str, Tensor]]:
    """Select a snapshot, load its weights into the energy, and return both."""
    candidates = {snapshot.iteration: snapshot for snapshot in usable}

    def weights_of(iteration: int) -> dict[str, Tensor]:
        return trainer.model(snapshots.read(candidates[iteration]))

    trainer.energy.requires_grad_(False)
    selection = select(trainer.vaebm, candidates, weights_of, dataset, trainer.stage, trainer.seed)
    weights = weights_of(selection.chosen)
    trainer.energy.load_state_dict(weights)
    return selection, weights


def run_iterations(
    trainer: EBMTrainer, images: Tensor, run_state: Training, guard: Guard, snapshots: Snapshots
) -> None:
    """Run the remaining iterations on all training images (N, C, H, W) uint8, with restarts after divergence.

    `guard` judges each iteration: `bad`, or `diverged` after several bad ones in a row. A snapshot is good once enough
    good iterations have followed it (`confirm`); a bad iteration drops those that wait (`doubt`). Afterwards `guard`
    tells whether the training ended well, `snapshots` has the good ones, and the events have the problems.
    """
    training, guarded = trainer.stage.training, trainer.stage.guard

    def gradients(step: int) -> Iteration:
        positive, negative = trainer.positives(step, images), trainer.negatives(step, images)
        return trainer.gradients(trainer.batch(step, images), step, positive, negative)

    if guarded.restarts and run_state.step == 0:
        snapshots.write(BEGINNING, trainer.snapshot)

    while True:
        for step in run_state.steps():
            rate = energy_learning_rate(step, training) * guarded.restart_factor**trainer.restarts
            seen = gradients(step)
            guard.watch(seen.loss, seen.gap, seen.spread, seen.gradient_norm)
            if step % 5 == 0 or guard.diverged:
                run_state.record(
                    **seen._asdict(), gap_over_spread=seen.gap / max(seen.spread, 1e-12), learning_rate=rate
                )
            if guard.diverged:
                break
            if math.isfinite(seen.loss) and math.isfinite(seen.gradient_norm):
                trainer.update(rate)
            if guard.bad:
                snapshots.doubt()  # those that wait to become good
            elif (step + 1) % training.snapshot_every == 0 or step + 1 == training.iterations:
                snapshots.take(Snapshot(step + 1, trainer.restarts), trainer.snapshot)
            snapshots.confirm(step + 1)
        if not guard.diverged or trainer.restarts == guarded.restarts:
            break
        # restart from the last good snapshot
        back = snapshots.last_good
        trainer.restart(snapshots.read(back))
        rate = guarded.restart_factor**trainer.restarts
        action = f"went back to iteration {back.iteration}, with another seed and {rate:g} times the learning rate"
        note(run_state, guard.reason, action)
        guard.forget()
        snapshots.doubt()
        run_state.step = back.iteration
        run_state.save()

    if not guard.diverged:  # the last update may be the one that explodes
        seen = gradients(training.iterations)
        guard.watch(seen.loss, seen.gap, seen.spread, seen.gradient_norm)
    if guard.bad:
        snapshots.doubt()
        note(run_state, guard.reason, "stopped")
    else:
        snapshots.confirm(math.inf)


def note(run_state: Training, reason: str, action: str) -> None:
    """Print and record a problem of the last iteration and the action taken."""
    run_state.extra["events"].append({"iteration": run_state.step, "reason": reason, "action": action})
    if distributed.rank() == 0:
        print(f"ebm: iteration {run_state.step}: {reason}: {action}", flush=True)
