"""Files are whole or not there; checkpoints survive a death at any moment; a training resumed ends in the same bits."""

import hashlib
import json
import math
import os
import signal
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from vaebm.cli.convert_results import convert_results
from vaebm.system.checkpoint import Checkpoints, hash_tensors, load_model, save_model
from vaebm.system.device import RESUME, Interrupted, Progress
from vaebm.system.errors import UserError
from vaebm.system.files import model_of, write_json, writing
from vaebm.training.loop import Limits, Training, batch_indices, training_batch


def test_nothing_appears_when_the_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(RuntimeError), writing(path) as stream:
        stream.write(b"half")
        raise RuntimeError
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_json_has_no_values_that_are_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_json(tmp_path / "file.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_hash_is_of_values_types_shapes_and_names() -> None:
    state = {"a": torch.arange(4.0), "b": torch.ones(2, dtype=torch.int64)}
    assert hash_tensors(state) == hash_tensors(dict(reversed(state.items())))
    others = [
        {**state, "a": state["a"].reshape(2, 2)},
        {**state, "a": state["a"].double()},
        {**state, "a": state["a"] + 1e-7},
        {"a": state["a"], "c": state["b"]},
    ]
    assert len({hash_tensors(other) for other in [state, *others]}) == 5
    channels_last = torch.rand(2, 3, 4, 4)
    assert hash_tensors({"w": channels_last}) == hash_tensors(
        {"w": channels_last.to(memory_format=torch.channels_last)}
    )


def test_models_are_known_by_their_kind(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    save_model(path, "nvae", {"groups": [1]}, {"w": torch.ones(2)}, shape=[1, 8, 8])
    content = load_model(path, "nvae")
    assert (
        content["network"] == {"groups": [1]}
        and content["shape"] == [1, 8, 8]
        and content["hash"] == hash_tensors({"w": torch.ones(2)})
    )
    with pytest.raises(UserError, match="expected a model of kind 'energy', found one of kind 'nvae'"):
        load_model(path, "energy")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="damaged"):
        load_model(path, "nvae")
    with pytest.raises(UserError, match="found no file"):
        load_model(tmp_path / "none.pt", "nvae")


def test_the_checkpoint_before_stands_in_for_a_damaged_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.load() is None
    for step in (1, 2, 3):
        checkpoints.save(step, {"step": step})
    assert checkpoints.load() == {"step": 3} and capsys.readouterr().out == ""
    newest, other = checkpoints.slots
    newest.write_bytes(newest.read_bytes()[:-1])
    assert checkpoints.load() == {"step": 2}
    warning = f"warning: {newest}: expected a whole checkpoint, found a damaged one; "
    assert capsys.readouterr().out == f"{warning}the one before it is read\n"
    checkpoints.save(4, {"step": 4})  # over the damaged one, never over the good one
    assert checkpoints.load() == {"step": 4} and json.loads(other.with_suffix(".json").read_text())["step"] == 2
    for slot in checkpoints.slots:
        slot.write_bytes(b"")
    assert checkpoints.load() is None
    assert (
        capsys.readouterr()
        .out.splitlines()[1]
        .endswith("b.pt: expected a whole checkpoint, found a damaged one; the training starts from the beginning")
    )
    checkpoints.save(1, {"step": 1})
    assert checkpoints.load() == {"step": 1}


def test_checkpoints_are_ordered_by_their_writing_after_those_of_earlier_versions(tmp_path: Path) -> None:
    """A restart writes an earlier step; earlier versions wrote no sequence number."""
    checkpoints = Checkpoints(tmp_path)
    for step in (8, 9):
        checkpoints.save(step, {"step": step})
    for record in tmp_path.glob("*.json"):
        record.write_text(json.dumps({**json.loads(record.read_text()), "sequence": 0}))
    for step in (3, 4, 2):
        checkpoints.save(step, {"step": step})
        assert Checkpoints(tmp_path).load() == {"step": step}


def test_checkpoints_have_the_hash_of_their_bytes_without_being_read_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"weights": torch.arange(1e6)})
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["sha256"] == hashlib.sha256((tmp_path / "a.pt").read_bytes()).hexdigest()


def train(folder: Path, stop_at: int | None = None, number: int = signal.SIGTERM, **limits: float) -> Training:
    """Twenty steps of a small regression; optionally a signal at one of them."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.Adam(model.parameters())
    run = Training("test", folder, {"seed": 0}, 20, {"model": model, "optimizer": optimizer}, Limits(**limits))
    for step in run.steps():
        if step == stop_at:
            os.kill(os.getpid(), number)
        loss = model(torch.arange(3.0) + step).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.record(loss=float(loss.detach()), weight=float(model.weight.detach().sum()))
    run.finish(status="finished", model="m" * 64)
    return run


def test_a_training_that_was_stopped_goes_on_in_the_same_bits(tmp_path: Path) -> None:
    train(tmp_path / "whole")
    for stop in (3, 11):
        with pytest.raises(Interrupted) as stopped:
            train(tmp_path / "cut", stop)
        assert stopped.value.status == 128 + signal.SIGTERM
        assert len((tmp_path / "cut" / "history.jsonl").read_text().splitlines()) == stop + 1
    train(tmp_path / "cut")
    assert (tmp_path / "cut" / "history.jsonl").read_bytes() == (tmp_path / "whole" / "history.jsonl").read_bytes()


def test_training_that_dies_after_its_last_step_resumes_there(tmp_path: Path) -> None:
    """In what follows the steps, as the selection of the energy's model."""
    run = Training("test", tmp_path, {"seed": 0}, 3, {}, Limits())
    for step in run.steps():
        run.record(loss=float(step))
    again = Training("test", tmp_path, {"seed": 0}, 3, {}, Limits())
    assert again.step == 3 and again._records == run._records and not [*again.steps()]


def test_a_training_stops_before_its_time_limit(tmp_path: Path) -> None:
    """A limit that is over already: one step, then saved, with the exit status that asks for another run."""
    with pytest.raises(Interrupted, match="time limit") as stopped:
        train(tmp_path, minutes=1e-9)
    assert stopped.value.status == RESUME
    assert train(tmp_path).step == 20


def test_progress_tells_of_the_present_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where figures are recorded only now and then; of a record the first three."""
    monkeypatch.setattr("vaebm.system.device.LINE_EVERY", 0.0)
    run = Training("test", tmp_path, {"seed": 0}, 4, {}, Limits())
    for step in run.steps():
        run.show(loss=10.0 * step)
        if step == 2:
            run.record(loss=20.0, gap=1.0, spread=2.0, more=3.0)
    told = [line.partition(", ")[2].rpartition(", ")[0] for line in capsys.readouterr().err.splitlines()]
    assert told == ["loss 0", "loss 10", "loss 20, gap 1, spread 2", "loss 30"]


def test_steps_count_their_time_and_close_their_progress_after_a_break(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the time of the step that the caller breaks in, here all of it."""
    closed: list[bool] = []
    monkeypatch.setattr(Progress, "close", lambda self: closed.append(True))
    run = Training("test", tmp_path, {"seed": 0}, 4, {}, Limits())
    for _ in run.steps():
        time.sleep(0.05)
        break
    assert run.seconds >= 0.05 and closed == [True]


def test_training_stopped_with_a_state_that_is_not_finite_says_that_it_was_not_saved(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 1)
    run = Training("test", tmp_path, {"seed": 0}, 20, {"model": model}, Limits(checkpoint_every=0.0))
    with pytest.raises(Interrupted, match="not finite and was not saved"):
        for step in run.steps():
            if step == 5:
                torch.nn.init.constant_(model.weight, math.nan)
                os.kill(os.getpid(), signal.SIGTERM)
    assert Training("test", tmp_path, {"seed": 0}, 20, {"model": model}, Limits()).step == 5
    assert bool(model.weight.isfinite().all())


def test_checkpoints_of_other_settings_are_not_taken(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(tmp_path, 5)
    other = Training("test", tmp_path, {"seed": 1}, 20, {"model": torch.nn.Linear(3, 1)}, Limits())
    assert other.step == 0


def test_every_epoch_takes_every_image_once() -> None:
    epoch = torch.cat([batch_indices(step, 4, 10, seed=0) for step in range(2)])
    assert len(set(epoch.tolist())) == 8
    again = torch.cat([batch_indices(step, 4, 10, seed=0) for step in (2, 3)])
    assert not torch.equal(epoch, again)
    assert torch.equal(batch_indices(3, 4, 10, seed=0), again[4:])


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "folder", tmp_path / "file" / "model.pt"):
        with pytest.raises(
            UserError, match=f"^{path}: cannot be written: .*; choose another place, or make room there$"
        ):
            save_model(path, "nvae", {}, {})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


def test_half_of_the_training_images_are_turned_and_no_other_thing_changes() -> None:
    """Pixel k of image n is 4n + k, so that the order and the turn can be read off."""
    images = torch.arange(400).reshape(100, 1, 1, 4)
    plain, turned = (training_batch(images, 3, 100, seed=0, flip=flip) for flip in (False, True))
    assert torch.equal(plain, images[batch_indices(3, 100, 100, seed=0)])
    are = (turned != plain).flatten(1).any(1)
    assert torch.equal(turned[are], plain[are].flip(3)) and torch.equal(turned[~are], plain[~are])
    assert torch.equal(turned, training_batch(images, 3, 100, seed=0, flip=True)), "a function of the seed and the step"
    each = [
        (training_batch(images, step, 100, seed=0, flip=True) != training_batch(images, step, 100, seed=0, flip=False))
        .any(3)
        .sum()
        for step in range(40)
    ]
    assert abs(int(sum(each)) - 2000) < 5 * 1000**0.5, (
        "five standard deviations of a binomial of 4,000 fair draws, which is √1000"
    )
    assert len(set(map(int, each))) > 1


def weights() -> dict[str, torch.Tensor]:
    """Every kind of tensor that a model has: no elements, none of one dimension, double precision, channels last."""
    generator = torch.Generator().manual_seed(0)
    last = torch.rand(4, 3, 3, 3, generator=generator).to(memory_format=torch.channels_last)
    double = torch.rand(5, generator=generator, dtype=torch.float64)
    return {"empty": torch.zeros(0, 4, 4), "count": torch.tensor(7), "kernel": last, "double": double}


def earlier_model(path: Path) -> None:
    """A model file as earlier versions wrote it."""
    content = {"kind": "energy", "network": {"channels": 4}, "weights": weights(), "hash": hash_tensors(weights())}
    torch.save({**content, "potential": "noise"}, path)


@pytest.mark.parametrize("earlier", [False, True])
def test_model_is_read_as_it_was_written(earlier: bool, tmp_path: Path) -> None:
    """Also by the library alone, which knows nothing of the project."""
    path = tmp_path / "model"
    if earlier:
        earlier_model(path)
    else:
        save_model(path, "energy", {"channels": 4}, weights(), potential="noise")
        assert all(torch.equal(found, weights()[name]) for name, found in safetensors.torch.load_file(path).items())
    content = load_model(path, "energy")
    assert (content["kind"], content["network"], content["potential"]) == ("energy", {"channels": 4}, "noise")
    assert content["weights"].keys() == weights().keys() and content["hash"] == hash_tensors(weights())
    for name, tensor in weights().items():
        assert content["weights"][name].dtype == tensor.dtype and torch.equal(content["weights"][name], tensor)


def test_weights_that_share_memory_are_saved(tmp_path: Path) -> None:
    """As a network of a plug-in may have; safetensors refuses them."""
    weight = torch.arange(6.0).reshape(2, 3)
    save_model(tmp_path / "model", "energy", {}, {"first": weight, "second": weight.t(), "third": weight[1:]})
    again = load_model(tmp_path / "model")["weights"]
    assert torch.equal(again["first"], weight) and torch.equal(again["second"], weight.t())
    assert torch.equal(again["third"], weight[1:])


@pytest.mark.parametrize("earlier", [False, True])
def test_flipped_bit_of_a_weight_is_found(earlier: bool, tmp_path: Path) -> None:
    path = tmp_path / "model"
    if earlier:
        earlier_model(path)
    else:
        save_model(path, "energy", {"channels": 4}, weights())
    content = bytearray(path.read_bytes())
    content[content.index(weights()["double"].numpy().tobytes()) + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model: expected .* damaged"):
        load_model(path, "energy")


def test_conversion_of_earlier_results_keeps_weights_times_and_the_earlier_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "results" / "digits" / "vaebm" / "seed0"
    run.mkdir(parents=True)
    earlier_model(run / "model.pt")
    os.utime(run / "model.pt", ns=(10**18, 10**18))
    before = (run / "model.pt").read_bytes()
    convert_results(tmp_path / "results")
    model = model_of(run)
    assert model.name == "model.safetensors" and model.stat().st_mtime_ns == 10**18
    assert load_model(model, "energy")["hash"] == hash_tensors(weights()) and (run / "model.pt").read_bytes() == before
    written = model.read_bytes()
    assert capsys.readouterr().out == f"{model}: converted from model.pt\n"
    convert_results(tmp_path / "results")
    assert model.read_bytes() == written and capsys.readouterr().out == f"{tmp_path / 'results'}: nothing to convert\n"
    with pytest.raises(UserError, match="other: expected the folder of the results, found none"):
        convert_results(tmp_path / "other")
