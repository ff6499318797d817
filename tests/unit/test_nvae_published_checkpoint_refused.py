"""Published NVAE checkpoints that are not right: one line each, which names the weight or the argument; nothing of them
is run.
"""

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from published_files import network, write_published
from torch import nn

from vaebm.nvae.published_checkpoint import convert_published_nvae
from vaebm.system.errors import UserError

RECORDED = Path(__file__).parents[1] / "parity" / "data"


def recorded(name: str = "cifar") -> dict[str, Any]:
    """A recorded checkpoint, of the published program."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        content: dict[str, Any] = torch.load(RECORDED / f"nvae_{name}_checkpoint.pt", weights_only=True)
    return content


def save(path: Path, state: Any, args: Any) -> Path:
    """A checkpoint of these weights and arguments."""
    torch.save({"state_dict": state, "args": args}, path)
    return path


def refused(path: Path, message: str) -> None:
    """One line that names the file and says what is wrong; no model file."""
    with pytest.raises(UserError) as error:
        convert_published_nvae(path, path.with_name("model.pt"))
    assert str(error.value).startswith(f"{path}: ") and re.search(message, str(error.value)), str(error.value)
    assert "\n" not in str(error.value) and not path.with_name("model.pt").exists()


def without(*prefixes: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: {name: value for name, value in state.items() if not name.startswith(prefixes)}


def instead(name: str, value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: state | {name: value}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("prior_ftr0"), "prior_ftr0: expected this weight"),
        (without("stem.log_weight_norm"), "stem.log_weight_norm: expected this weight"),
        (without("pre_process.0._ops.1.conv_0.bias"), "pre_process.0._ops.1.conv_0.bias: expected this weight"),
        (without("pre_process.1.skip.conv_4.weight"), "pre_process.1.skip.conv_4.weight: expected this weight"),
        (
            without("enc_tower.0._ops.0.bn_act.running_var"),
            "enc_tower.0._ops.0.bn_act.running_var: expected this weight",
        ),
        (without("enc_tower.2.conv."), "enc_tower.2.conv.weight: expected this weight"),
        (without("enc_sampler.2.bias"), "enc_sampler.2.bias: expected this weight"),
        (without("nf_cells.2.cell2.mu.conv_0.weight"), "nf_cells.2.cell2.mu.conv_0.weight: expected this weight"),
        (
            without("dec_tower.1._ops.0.conv.3."),
            "dec_tower.1._ops: expected 7 layers with weights, found 6: dec_tower.1._ops.0.conv.0.bn, ",
        ),
        (
            without("dec_tower.1.se.se.0.", "dec_tower.1.se.se.2."),
            "dec_tower.1.se: expected 2 layers with weights, found 0: none",
        ),
        (without("post_process.0.skip.1."), "post_process.0.skip: expected 1 layers with weights, found 0: none"),
        (without("image_conditional.1.bias"), "image_conditional.1.bias: expected this weight"),
        (
            instead("enc_tower.99.conv.weight", torch.zeros(1)),
            r"enc_tower.99.conv.weight: a weight that the network .* does not have \(1 such",
        ),
        (
            instead("stem.scale", torch.zeros(1)),
            "stem.scale: a weight that the network of these arguments does not have",
        ),
        (
            instead("dec_tower.1._ops.0.conv.5.weight", torch.zeros(1)),
            "dec_tower.1._ops: expected 7 layers with weights, found 8",
        ),
        (
            instead("pre_process.0.skip.1.weight", torch.zeros(1)),
            "pre_process.0.skip: expected 0 layers with weights, found 1",
        ),
        (
            instead("enc0.1.weight", torch.zeros(16, 16, 3, 3)),
            r"enc0.1.weight: expected the shape \(16, 16, 1, 1\), found \(16, 16, 3, 3\)",
        ),
        (
            instead("stem.log_weight_norm", torch.zeros(8)),
            r"stem.log_weight_norm: expected the shape \(8, 1, 1, 1\), found \(8,\)",
        ),
        (instead("stem.weight", torch.zeros(8)), "stem.weight: expected "),
        (instead("prior_ftr0", torch.zeros(16, 16)), "prior_ftr0: expected "),
        (instead("image_conditional.1.weight", torch.zeros(())), "image_conditional.1.weight: expected "),
        (instead("stem.bias", 5), "stem.bias"),
        (instead("stem.bias", [0.0]), "stem.bias"),
        (instead("stem.weight", None), "stem.weight"),
    ],
)
def test_any_other_weights_are_refused_by_name(
    change: Callable[[dict[str, Any]], dict[str, Any]], message: str, tmp_path: Path
) -> None:
    content = recorded()
    refused(save(tmp_path / "checkpoint.pt", change(content["state_dict"]), content["args"]), message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch_instance": "res_mbconv9"}, "args.arch_instance: expected one of res_mbconv, .*, found 'res_mbconv9'"),
        (
            {"num_postprocess_blocks": 2},
            r"args.num_postprocess_blocks: expected num_preprocess_blocks \(1\), .*, found 2",
        ),
        ({"num_x_bits": 9}, "args: bits: .*less than or equal to 8"),
        ({"num_groups_per_scale": -1}, "args: groups.0: .*greater than 0"),
        ({"num_channels_enc": 8.5}, "args.num_channels_enc: expected a value of type int"),
        (
            {"num_latent_scales": 1, "num_groups_per_scale": 1, "num_channels_enc": 16},
            "args: .*channels_encoder must equal channels_decoder",
        ),
        ({"num_channels_enc": 16}, r"stem.weight: expected the shape \(16, 3, 3, 3\), found \(8, 3, 3, 3\)"),
        (
            {"num_mixture_dec": 10},
            r"image_conditional.1.weight: expected the shape \(100, 8, 3, 3\), found \(6, 8, 3, 3\)",
        ),
        ({"dataset": "mnist"}, r"image_conditional.1.weight: expected the shape \(3, 8, 3, 3\), found \(6, 8, 3, 3\)"),
        ({"num_groups_per_scale": 4}, "enc_tower.8.conv.weight: expected this weight"),
        (
            {"num_groups_per_scale": 2},
            r"a weight that the network of these arguments does not have \(120 such in all\)",
        ),
        ({"num_nf": 2}, "nf_cells.3.cell1.conv.convz.0.weight: expected this weight"),
        ({"num_nf": 0}, r"nf_cells.* does not have \(42 such in all\)"),
        ({"use_se": False}, r"pre_process.0.se: expected 0 layers with weights, found 2"),
        ({"arch_instance": "mbconv_sep"}, "pre_process.0._ops: expected 7 layers with weights, found 4"),
        ({"num_latent_scales": "1"}, "args.*num_latent_scales"),
        ({"num_latent_scales": 0}, "args.*num_latent_scales"),
        ({"num_mixture_dec": "1"}, "args.*num_mixture_dec"),
        ({"dataset": ["cifar10"]}, "args.*dataset"),
    ],
)
def test_arguments_that_the_weights_do_not_have_are_named(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    content = recorded()
    refused(
        save(tmp_path / "checkpoint.pt", content["state_dict"], argparse.Namespace(**vars(content["args"]) | changes)),
        message,
    )


def test_a_mixture_of_greys_is_refused(tmp_path: Path) -> None:
    """Weights of one channel with the arguments of a mixture for colours."""
    content = recorded("discrete")
    path = save(
        tmp_path / "checkpoint.pt", content["state_dict"] | {"stem.weight": torch.zeros(9, 1, 3, 3)}, content["args"]
    )
    refused(path, "3 colours|stem.weight")


@pytest.mark.parametrize(
    "name",
    [
        "dataset",
        "arch_instance",
        "num_latent_scales",
        "num_groups_per_scale",
        "num_channels_enc",
        "num_postprocess_blocks",
    ],
)
def test_a_missing_argument_is_named(name: str, tmp_path: Path) -> None:
    content = recorded()
    delattr(content["args"], name)
    refused(
        save(tmp_path / "checkpoint.pt", content["state_dict"], content["args"]),
        f"args.{name}: expected this argument of the published program",
    )


class Stranger:
    """A class of the user's own."""


class Command:
    """What runs a program when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def test_objects_that_could_run_a_program_are_refused(tmp_path: Path) -> None:
    """In the weights, in the arguments, in place of everything: named, and never made."""
    marker, content = tmp_path / "was-run", recorded()
    state, args = content["state_dict"], content["args"]
    path = tmp_path / "checkpoint.pt"
    for what, name in (
        (Command(marker), f"{os.system.__module__}.system"),
        (Stranger(), "Stranger"),
        (nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    ):
        refused(
            save(path, state | {"stem.bias": what}, args),
            f"expected a published NVAE checkpoint, found an object of [\\w.]*{name} in it",
        )
        refused(save(path, state, argparse.Namespace(**vars(args) | {"dataset": what})), name)
        refused(save(path, state, what), name)
        torch.save(what, path)
        refused(path, name)
    assert not marker.exists()
    torch.load(save(tmp_path / "unsafe.pt", {}, Command(marker)), weights_only=False)
    assert marker.exists()  # so the command is one that would have run


def test_other_files_are_refused(tmp_path: Path) -> None:
    whole = (RECORDED / "nvae_cifar_checkpoint.pt").read_bytes()
    content = recorded()
    torch.save([1, 2], tmp_path / "list")
    torch.save(content["state_dict"], tmp_path / "bare")
    torch.save({"state_dict": content["state_dict"], "args": vars(content["args"])}, tmp_path / "arguments")
    torch.save({"state_dict": [1], "args": content["args"]}, tmp_path / "weights")
    (tmp_path / "cut").write_bytes(whole[:-1000])
    (tmp_path / "holed").write_bytes(whole[:200_000] + bytes(2000) + whole[202_000:])
    (tmp_path / "text").write_text("not a checkpoint")
    (tmp_path / "empty").touch()
    messages = {
        "list": "a dict under the key state_dict, found list",
        "bare": "a dict under the key state_dict, found the keys prior_ftr0, ",
        "arguments": "a Namespace under the key args, found dict",
        "weights": "a dict under the key state_dict, found list",
        "cut": "found a damaged file or one of another kind",
        "holed": "found a damaged file or one of another kind",
        "text": "found a damaged file or one of another kind",
        "empty": "found a damaged file or one of another kind",
        "missing": "found no file",
    }
    for name, message in messages.items():
        refused(tmp_path / name, message)


@pytest.mark.parametrize("legacy", [False, True])
def test_full_files_that_are_cut_or_hold_other_objects_are_refused(legacy: bool, tmp_path: Path) -> None:
    path = write_published(tmp_path / "checkpoint.pt", network(), legacy=legacy)
    whole = path.read_bytes()
    for length in (1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path, "found a damaged file or one of another kind")
    if not legacy:  # a damaged weight is finite too; other files have no checksums
        start = whole.index(network().stem.weight.detach().numpy().tobytes())
        path.write_bytes(whole[:start] + bytes(4) + whole[start + 4 :])
        refused(path, "found a damaged file or one of another kind")
    path.write_bytes(whole)
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(path, weights_only=True)
    state = content["state_dict"]
    for changes, message in (
        ({"state_dict": without("stem.bias")(state) | {"stem.offset": state["stem.bias"]}}, "stem.bias: expected this"),
        ({"state_dict": state | {"stem.bias": [0.0]}}, "stem.bias: expected a tensor, found list"),
        ({"args": [1]}, "a Namespace under the key args, found list"),
        ({"scheduler": {"lr": Stranger()}}, "found an object of [\\w.]*Stranger in it"),
    ):
        torch.save(content | changes, path, _use_new_zipfile_serialization=not legacy)
        refused(path, message)
