"""Trains the CLIP: image and text tower, contrastively, on glyphs and captions (an open_clip `CLIP`).

    python -m training.clip --minutes 25 [--resume] [--threads 1]

Beside the contrastive loss the text tower's states from the end token on predict the picture's 8×8 colour layout through a head
that is thrown away afterwards: the same tower conditions the UNet, which then finds the layout in the states instead of having to
learn it from one end-of-text vector.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from training.captions import MAX_TOKENS, VOCABULARY, caption, main_colour, train_tokenizer
from training.glyphs import choose, images, layout8
from training.optim import Average, Clock, Optimizers

SIDE = 64
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
CONFIG: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": SIDE, "patch_size": 8, "width": 192, "layers": 4, "head_width": 32, "mlp_ratio": 4.0},
    "text_cfg": {"context_length": MAX_TOKENS, "vocab_size": VOCABULARY, "width": 192, "heads": 6, "layers": 4},
}
LAYOUT_WEIGHT = 20.0


def text_states(model: nn.Module, ids: Tensor) -> Tensor:
    """Final states of every token, (N, T, width): what `CLIPTextModel` calls `last_hidden_state`."""
    x = model.token_embedding(ids) + model.positional_embedding[: ids.shape[1]]
    return model.ln_final(model.transformer(x, attn_mask=model.attn_mask[: ids.shape[1], : ids.shape[1]]))


def text_embedding(model: nn.Module, states: Tensor, ids: Tensor) -> Tensor:
    pooled = states[torch.arange(len(ids)), ids.argmax(dim=-1)]
    return F.normalize(pooled @ model.text_projection, dim=-1)


def augment(batch: Tensor, rng: torch.Generator) -> Tensor:
    """Shift, zoom, mirror, colour, blur and noise: what a small diffusion model's pictures differ by from the glyphs."""
    n = len(batch)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=rng) * (high - low) + low

    scale, shift = uniform(0.85, 1.2, n), uniform(-0.12, 0.12, n, 2)
    mirror = torch.where(uniform(0, 1, n) < 0.15, -1.0, 1.0)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale * mirror, scale, shift
    grid = F.affine_grid(theta, list(batch.shape), align_corners=False)
    out = 1 - F.grid_sample(1 - batch, grid, padding_mode="zeros", align_corners=False)  # white comes in at the edges
    out = 1 - (1 - out) * uniform(0.8, 1.2, n, 1, 1, 1) + uniform(-0.05, 0.05, n, 3, 1, 1) * (out < 0.95)
    low = F.interpolate(F.avg_pool2d(out, 2), scale_factor=2.0, mode="bilinear")
    mix = uniform(0, 1, n, 1, 1, 1) * (uniform(0, 1, n, 1, 1, 1) < 0.6)
    out = out * (1 - mix) + low * mix
    return (out + torch.randn(out.shape, generator=rng) * uniform(0, 0.08, n, 1, 1, 1)).clamp(-1, 1)


@torch.no_grad()
def retrieval(model: nn.Module, pictures: Tensor, ids: Tensor) -> float:
    """Share of pictures whose nearest name (cosine) is their own."""
    image = F.normalize(model.encode_image(pictures), dim=-1)
    text = text_embedding(model, text_states(model, ids), ids)
    return float(((image @ text.T).argmax(1) == torch.arange(len(ids))).float().mean())


def save(model: nn.Module, tokenizer_dir: Path, out: Path) -> None:
    """Writes the open_clip `local-dir` folder, fp16."""
    out.mkdir(parents=True, exist_ok=True)
    config = json.loads(json.dumps(CONFIG))
    config["text_cfg"] |= {"hf_tokenizer_name": "tokenizer"}
    preprocess = {
        "size": SIDE,
        "mode": "RGB",
        "mean": MEAN,
        "std": STD,
        "interpolation": "bicubic",
        "resize_mode": "squash",
        "fill_color": 255,
    }
    described = {"model_cfg": config, "preprocess_cfg": preprocess, "domain": "emoji"}
    (out / "open_clip_config.json").write_text(json.dumps(described, indent=2) + "\n")
    state = {k: v.half().contiguous() for k, v in model.state_dict().items() if k != "attn_mask"}
    save_file(state, out / "open_clip_model.safetensors", metadata={"format": "pt"})
    for file in tokenizer_dir.iterdir():
        (out / file.name).write_bytes(file.read_bytes())


def train(out: Path, minutes: float, batch_size: int, resume: bool, seed: int) -> None:
    torch.manual_seed(seed)
    rng, noise = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    glyphs = choose()
    raw = images(glyphs)
    colours = [main_colour(image) for image in raw]
    train_tokenizer(glyphs, out / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")

    def encode(texts: list[str]) -> Tensor:
        return tokenizer(texts, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt")["input_ids"]

    full = torch.from_numpy(raw).permute(0, 3, 1, 2).float() / 127.5 - 1
    small = F.interpolate(full, size=(SIDE, SIDE), mode="bicubic", antialias=True).clamp(-1, 1)
    layouts = torch.from_numpy(layout8(raw))
    names = encode([glyph.name for glyph in glyphs])
    model, head = open_clip.CLIP(**CONFIG), nn.Linear(CONFIG["text_cfg"]["width"], layouts.shape[1])
    saved = torch.load(out / "clip.pt", weights_only=True) if resume else None
    if saved:
        model.load_state_dict(saved["average"])
        head.load_state_dict(saved["head"])
    both = nn.ModuleDict({"clip": model, "head": head})
    optimizers = Optimizers(both, muon_lr=0.01, adam_lr=1e-3, skip=("clip.token_embedding", "clip.positional_embedding", "head"))
    average, clock = Average(model, 0.995), Clock(minutes)
    print(f"{len(glyphs)} pairs, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    steps, last = 0, time.monotonic()
    while clock.fraction < 1:
        for index in torch.randperm(len(glyphs)).split(batch_size):
            ids = encode([caption(glyphs[i], colours[i], rng) for i in index.tolist()])
            if steps % 4:  # captions are short and the tower is causal: the tail of padding is needed only now and then
                ids = ids[:, :16]
            states = text_states(model, ids)
            text = text_embedding(model, states, ids)
            image = F.normalize(model.encode_image(augment(small[index], noise)), dim=-1)
            logits = model.logit_scale.exp().clamp(max=100) * image @ text.T
            target = torch.arange(len(index))
            contrast = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
            ended = (torch.cumsum(ids == VOCABULARY - 1, dim=1) > 0).unsqueeze(-1)
            layout = ((head(states) - layouts[index].unsqueeze(1)).square() * ended).sum() / (ended.sum() * layouts.shape[1])
            (contrast + LAYOUT_WEIGHT * layout).backward()
            torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
            optimizers.step(clock.scale())
            average.update(model)
            steps += 1
            if steps % 50 == 0:
                rate = 50 * batch_size / (time.monotonic() - last)
                print(
                    f"{steps:6d} {clock.fraction:.3f} contrast {contrast:.3f} layout rms {layout.sqrt():.3f} {rate:.0f} pairs/s", flush=True
                )
                last = time.monotonic()
            if clock.fraction >= 1:
                break
        if steps % 280 < 14 or clock.fraction >= 1:
            torch.save({"average": average.values, "head": head.state_dict()}, out / "clip.pt")
    model.load_state_dict(average.values)
    model.eval()
    print(f"image → text top-1 {retrieval(model, small, names):.3f}", flush=True)
    save(model, out / "tokenizer", out / "clip")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/training"))
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args.out, args.minutes, args.batch_size, args.resume, args.seed)


if __name__ == "__main__":
    main()
