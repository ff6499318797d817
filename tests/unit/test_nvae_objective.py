"""The NVAE's objective: KL terms, regularisers and schedules."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_nvae import DOUBLE, build

from vaebm.config import NVAETrainingSettings
from vaebm.noise import NoiseSource
from vaebm.nvae.layers import BatchNorm
from vaebm.nvae.objective import batch_norm_penalty, group_sizes, kl_balance, kl_coefficient, nelbo, norm_weight
from vaebm.nvae.train import scheduled_learning_rate


def test_kl_coefficient_grows_once() -> None:
    beta = [kl_coefficient(step, 1000, 0.3, 1e-4) for step in range(1000)]
    assert beta[0] == 1e-4 and beta[150] == pytest.approx((150 - 0.1) / 300) and set(beta[301:]) == {1.0}
    assert kl_coefficient(0, 10, 0.0, 1e-4) == 1.0


@given(beta=st.floats(0, 1), initial=st.floats(1e-3, 1e3), final=st.floats(1e-4, 1e2))
def test_weight_of_the_regularisers_goes_by_factors(beta: float, initial: float, final: float) -> None:
    """λ₀^(1 − β) λ₁^β: from λ₀ at β = 0 to λ₁ at β = 1, half way by their geometric mean; without λ₀ it is λ₁
    throughout.
    """
    assert norm_weight(beta, None, final) == final
    assert norm_weight(beta, initial, final) == pytest.approx(initial ** (1 - beta) * final**beta, rel=1e-12)
    assert norm_weight(0.0, initial, final) == pytest.approx(initial) and norm_weight(
        1.0, initial, final
    ) == pytest.approx(final)
    assert norm_weight(0.5, 10.0, 0.1) == pytest.approx(1.0)


def test_group_sizes_are_those_of_the_specification() -> None:
    assert group_sizes([5]) == [1.0] * 5
    assert group_sizes([5, 5, 5]) == [1.0] * 5 + [4.0] * 5 + [16.0] * 5
    assert group_sizes([4, 2]) == [1.0] * 2 + [2.0] * 4


def test_kl_balance_is_even_for_even_groups_and_off_at_full_weight() -> None:
    sizes = torch.tensor([1.0, 4.0], dtype=DOUBLE)
    torch.testing.assert_close(
        kl_balance(torch.tensor([[0.99, 3.99]], dtype=DOUBLE), sizes), torch.ones(2, dtype=DOUBLE)
    )
    nvae, x = build(), torch.rand(2, 1, 8, 8, dtype=DOUBLE)
    output = nvae(x, noise=NoiseSource(0, "test", range(2)))
    plain, balanced = nelbo(output, x, 1.0), nelbo(output, x, 1.0, torch.tensor(group_sizes([2, 1])))
    assert plain.loss == balanced.loss == plain.reconstruction + plain.kl.sum()
    assert nelbo(output, x, 0.5).loss != nelbo(output, x, 0.5, torch.tensor(group_sizes([2, 1]))).loss


def test_batch_norm_penalty_counts_every_layer_once() -> None:
    nvae = build()
    layers = [layer for layer in nvae.modules() if isinstance(layer, BatchNorm)]
    assert float(batch_norm_penalty(layers)) == pytest.approx(sum(layer.weight.abs().max().item() for layer in layers))
    assert batch_norm_penalty([]) == 0  # architecture res_elu has none


def test_learning_rate_as_published() -> None:
    """Linear from 0, then the scheduler of torch, stepped by epochs and started from the last value of the warm-up."""
    training = NVAETrainingSettings(epochs=12, batch=2, learning_rate=1e-2, warmup_epochs=3)
    ours = [scheduled_learning_rate(step, 10, training) for step in range(120)]
    assert ours[:30] == pytest.approx([1e-2 * step / 30 for step in range(30)])
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=ours[29])
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12 - 3 - 1, eta_min=1e-4)
    for epoch in range(3, 12):
        assert ours[10 * epoch] == ours[10 * epoch + 9] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        scheduler.step()
