"""Muon, an optimizer for matrices: each step is the nearest orthogonal matrix to the averaged gradient.

torch.optim.Muon works in bfloat16, which a processor without instructions for it does some forty times slower. This is
the same rule in float32, with matrices of one shape in one product. After Jordan and others, "Muon: an optimizer for
hidden layers in neural networks" (2024); the learning rate is scaled as in "Muon is scalable for LLM training" (2025).
"""

from collections import defaultdict
from collections.abc import Iterable

import torch

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the Newton-Schulz iteration, which brings singular values near 1
ITERATIONS = 5
RMS = 0.2  # of a step's values, by learning rate: AdamW's


class Muon(torch.optim.Optimizer):
    """With Nesterov momentum, and weight decay apart from the gradient."""

    def __init__(self, matrices: Iterable[torch.nn.Parameter], learning_rate: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": learning_rate, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Change each matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
            for matrix in group["params"]:
                by_shape[matrix.shape].append(matrix)
            for shape, matrices in by_shape.items():
                steps = orthogonal(torch.stack([self._averaged(matrix) for matrix in matrices]))
                rate = group["lr"] * RMS * max(shape) ** 0.5
                for matrix, step in zip(matrices, steps, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(step, alpha=rate)

    def _averaged(self, matrix: torch.nn.Parameter) -> torch.Tensor:
        assert matrix.grad is not None
        average = self.state[matrix].setdefault("average", torch.zeros_like(matrix))
        average.lerp_(matrix.grad, 1 - MOMENTUM)
        return matrix.grad.lerp(average, MOMENTUM)


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """About the nearest orthogonal matrix to each. Shape (count, rows, columns)."""
    a, b, c = COEFFICIENTS
    tall = matrices.size(1) > matrices.size(2)
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x
