"""Work of an iteration that no update changes, done for several iterations at once."""

from collections.abc import Callable, Hashable, Iterable

from torch import Tensor

AHEAD = 16
"""Iterations at once; fixed, because the last digits depend on it."""


class Ahead:
    """Tensors of the iterations of one block, those numbered k · `AHEAD` to (k + 1) · `AHEAD` − 1.

    A training that resumes within a block computes the whole block again, so it has the same bits.
    """

    def __init__(self) -> None:
        self._block: tuple[Hashable, int] | None = None
        self._tensors: list[Tensor] = []

    def of(self, step: int, key: Hashable, compute: Callable[[Iterable[int]], list[Tensor]]) -> list[Tensor]:
        """The tensors of iteration `step`.

        Args:
            step: number of the iteration, from 0.
            key: what else the tensors depend on; a new key, as after a restart, begins a new block.
            compute: tensors of all iterations of a block, in order, with equal numbers of rows for each.
        """
        place = step % AHEAD
        block = key, step - place
        if self._block != block:
            self._block, self._tensors = block, compute(range(step - place, step - place + AHEAD))
        return [tensor.chunk(AHEAD)[place] for tensor in self._tensors]
