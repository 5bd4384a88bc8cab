"""The optimiser and the clock that every part of the recipe shares.

Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"): momentum, orthogonalised by four
Newton-Schulz steps, for weight matrices and flattened convolution kernels; AdamW for all else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def orthogonalize(matrix: Tensor, steps: int = 4) -> Tensor:
    """Nearest semi-orthogonal matrix, roughly: quintic Newton-Schulz with the coefficients of the Muon write-up.

    Every iterate is a polynomial of the Gram matrix times the input, so the iteration runs on the small square side and the wide
    matrix is touched twice: four times cheaper for convolution kernels.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    eye = torch.eye(x.shape[0], dtype=x.dtype, device=x.device)
    gram = x @ x.T
    product = None
    for step in range(steps):
        q = a * eye + b * gram + c * gram @ gram
        product = q if product is None else q @ product
        if step < steps - 1:
            gram = q @ gram @ q
    x = product @ x if product is not None else x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Parameters with two or more dims; a kernel (out, in, h, w) is treated as the matrix (out, in*h*w)."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"])  # Nesterov
                flat = update.reshape(update.shape[0], -1)
                step = orthogonalize(flat) * max(1.0, flat.shape[0] / flat.shape[1]) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(step.reshape(p.shape), alpha=-group["lr"])


class Optimizers:
    """Muon for the hidden matrices of `model`, AdamW for the rest, on one schedule; `skip` names modules that AdamW keeps."""

    def __init__(self, model: nn.Module, muon_lr: float, adam_lr: float, skip: tuple[str, ...] = ()) -> None:
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        hidden = [p for n, p in named if p.ndim >= 2 and min(p.shape[0], p[0].numel()) >= 8 and not n.startswith(skip)]
        ids = {id(p) for p in hidden}
        rest = [p for _, p in named if id(p) not in ids]
        self.parts = [Muon(hidden, lr=muon_lr, weight_decay=0.01), torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.99), weight_decay=0.0)]
        self.base = [muon_lr, adam_lr]

    def step(self, scale: float) -> None:
        for part, lr in zip(self.parts, self.base, strict=True):
            part.param_groups[0]["lr"] = lr * scale
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, object]]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, object]]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


class Clock:
    """A wall-clock budget as a learning-rate schedule: linear warm-up, flat, cosine to zero over the last `cool` of the time."""

    def __init__(self, minutes: float, warm: float = 0.01, cool: float = 0.5) -> None:
        self.start, self.total, self.warm, self.cool = time.monotonic(), minutes * 60, warm, cool

    @property
    def fraction(self) -> float:
        return (time.monotonic() - self.start) / self.total

    def scale(self) -> float:
        f = self.fraction
        if f < self.warm:
            return (f + 1e-3) / (self.warm + 1e-3)
        if f < 1 - self.cool:
            return 1.0
        return max(0.0, 0.5 * (1 + math.cos(math.pi * min(1.0, (f - 1 + self.cool) / self.cool))))


class Average:
    """Exponential moving average of a model's parameters, with a warm-up so that the first steps do not linger."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.values = {n: p.detach().clone() for n, p in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, value in model.state_dict().items():
            if value.dtype.is_floating_point:
                self.values[name].lerp_(value, 1 - decay)
            else:
                self.values[name].copy_(value)
