"""Trains the autoencoder: 128×128 pictures ↔ 4×16×16 latents (`diffusers.AutoencoderKL`).

    python -m training.vae --minutes 40 [--resume] [--decoder-only]

One group in every normalisation: with a group a channel, the narrow full-resolution layers lose the mean colour and the
pictures come out washed out. `--decoder-only` goes on with the encoder frozen, so that latents (and a UNet trained on them) stay.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from training.glyphs import choose, images
from training.optim import Average, Clock, Optimizers

CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [8, 16, 48, 96],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 1,
    "sample_size": 128,
    "mid_block_add_attention": False,
    "act_fn": "silu",
}
KL_WEIGHT = 5e-5


def tensors(raw: np.ndarray) -> Tensor:
    """uint8 (N, S, S, 3) → float (N, 3, S, S) in [-1, 1]."""
    return torch.from_numpy(raw).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


def augment(batch: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """Mirrors and shifts (white in) for a share of the batch, so that the codec is not only a table of the set."""
    out = batch.clone()
    for i in range(len(out)):
        if rng.random() < share:
            if rng.random() < 0.5:
                out[i] = out[i].flip(-1)
            dx, dy = (int(v) for v in rng.integers(-8, 9, 2))
            out[i] = F.pad(out[i : i + 1], (8, 8, 8, 8), value=1.0)[0, :, 8 + dy : 136 + dy, 8 + dx : 136 + dx]
    return out


@torch.no_grad()
def psnr(model: AutoencoderKL, data: Tensor) -> tuple[float, float]:
    """(mean of the per-image PSNR, PSNR of the mean squared error), dB, of posterior-mean reconstructions in [0, 1]."""
    errors = []
    for chunk in data.split(32):
        y = model.decode(model.encode(chunk).latent_dist.mean).sample.clamp(-1, 1)
        errors.append(((y - chunk) / 2).square().mean((1, 2, 3)))
    mse = torch.cat(errors)
    return float((-10 * mse.log10()).mean()), float(-10 * mse.mean().log10())


def train(out: Path, minutes: float, batch_size: int, resume: bool, decoder_only: bool, seed: int) -> None:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    data = tensors(images(choose()))
    model = AutoencoderKL(**CONFIG).to(memory_format=torch.channels_last)
    state_file = out / "vae.pt"
    saved = torch.load(state_file, weights_only=True) if resume else None
    if saved:
        model.load_state_dict(saved["average"])
    if decoder_only:
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
    optimizers = Optimizers(model, muon_lr=0.02, adam_lr=2e-3)
    average, clock = Average(model, 0.998), Clock(minutes)
    print(f"{len(data)} pictures, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    steps, last, losses = 0, time.monotonic(), []
    while clock.fraction < 1:
        for index in torch.randperm(len(data)).split(batch_size):
            x = augment(data[index], 0.15, rng)
            posterior = model.encode(x).latent_dist
            y = model.decode(posterior.sample()).sample
            mse = F.mse_loss(y, x)
            (mse + KL_WEIGHT * posterior.kl().mean() / 1024).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizers.step(clock.scale())
            average.update(model)
            steps += 1
            losses.append(mse.item() / 4)
            if steps % 50 == 0:
                rate = 50 * batch_size / (time.monotonic() - last)
                print(f"{steps:6d} {clock.fraction:.3f} psnr {-10 * np.log10(np.mean(losses[-50:])):.2f} dB {rate:.1f} img/s", flush=True)
                last = time.monotonic()
            if steps % 200 == 0 or clock.fraction >= 1:
                torch.save({"average": average.values, "steps": steps}, state_file)
            if clock.fraction >= 1:
                break
    model.load_state_dict(average.values)
    print("per image / pooled: {:.2f} / {:.2f} dB".format(*psnr(model.eval(), data)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/training"))
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--decoder-only", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    train(args.out, args.minutes, args.batch_size, args.resume, args.decoder_only, args.seed)


if __name__ == "__main__":
    main()
