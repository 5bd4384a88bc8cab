"""Trains the UNet on the autoencoder's latents, conditioned on the (frozen) CLIP text tower, and assembles the pipeline folder.

    python -m training.unet --minutes 60 [--resume] [--cool 0.4]      train; a run that will be continued uses --cool 0
    python -m training.unet --assemble src/platemark/models/emoji     write the diffusers pipeline from the checkpoints

v-prediction (Salimans & Ho 2022), with most of the timesteps drawn towards noise, where the layout of the picture is decided.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training import clip, vae
from training.captions import MAX_TOKENS, VOCABULARY, caption, main_colour
from training.glyphs import Glyph, choose, images, layout8
from training.optim import Average, Clock, Optimizers

CONFIG = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [64, 128, 192],
    "layers_per_block": 1,
    "cross_attention_dim": clip.CONFIG["text_cfg"]["width"],
    "attention_head_dim": 4,
    "norm_num_groups": 16,
    "addition_embed_type": "text",  # the pooled text joins the timestep embedding: layouts are learned several times faster
    "addition_embed_type_num_heads": 6,
    "resnet_time_scale_shift": "scale_shift",
    "use_linear_projection": True,
}
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
}
CAPTIONS_EACH = 24
UNCONDITIONAL_SHARE = 0.08
LOOK_MINUTES = 15


def text_encoder(out: Path) -> CLIPTextModel:
    """The CLIP text tower as transformers' `CLIPTextModel` (same weights, same outputs)."""
    text = clip.CONFIG["text_cfg"]
    config = CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=text["width"], intermediate_size=4 * text["width"], projection_dim=clip.CONFIG["embed_dim"],
        num_hidden_layers=text["layers"], num_attention_heads=text["heads"], max_position_embeddings=MAX_TOKENS, hidden_act="gelu",
        bos_token_id=VOCABULARY - 2, eos_token_id=VOCABULARY - 1, pad_token_id=VOCABULARY - 1,
    )  # fmt: skip
    state = torch.load(out / "clip.pt", weights_only=True)["average"]
    mapped = {
        "embeddings.token_embedding.weight": state["token_embedding.weight"],
        "embeddings.position_embedding.weight": state["positional_embedding"],
        "final_layer_norm.weight": state["ln_final.weight"],
        "final_layer_norm.bias": state["ln_final.bias"],
    }
    for i in range(text["layers"]):
        ours, theirs = f"transformer.resblocks.{i}", f"encoder.layers.{i}"
        for kind in ("weight", "bias"):
            for name, part in zip("qkv", state[f"{ours}.attn.in_proj_{kind}"].chunk(3), strict=True):
                mapped[f"{theirs}.self_attn.{name}_proj.{kind}"] = part
            mapped[f"{theirs}.self_attn.out_proj.{kind}"] = state[f"{ours}.attn.out_proj.{kind}"]
            mapped[f"{theirs}.layer_norm1.{kind}"] = state[f"{ours}.ln_1.{kind}"]
            mapped[f"{theirs}.layer_norm2.{kind}"] = state[f"{ours}.ln_2.{kind}"]
            mapped[f"{theirs}.mlp.fc1.{kind}"] = state[f"{ours}.mlp.c_fc.{kind}"]
            mapped[f"{theirs}.mlp.fc2.{kind}"] = state[f"{ours}.mlp.c_proj.{kind}"]
    model = CLIPTextModel(config)
    prefix = "text_model." if any(k.startswith("text_model.") for k in model.state_dict()) else ""
    missing, unexpected = model.load_state_dict({prefix + k: v for k, v in mapped.items()}, strict=False)
    if unexpected or [k for k in missing if "position_ids" not in k]:
        raise RuntimeError(f"text tower does not map: missing {missing}, unexpected {unexpected}")
    return model.eval()


def autoencoder(out: Path) -> AutoencoderKL:
    model = AutoencoderKL(**vae.CONFIG)
    model.load_state_dict(torch.load(out / "vae.pt", weights_only=True)["average"])
    return model.eval()


@torch.no_grad()
def latents(model: AutoencoderKL, raw: np.ndarray) -> Tensor:
    """Posterior means, (N, 4, 16, 16), not yet scaled."""
    return torch.cat([model.encode(chunk).latent_dist.mean for chunk in vae.tensors(raw).split(32)])


@torch.no_grad()
def caption_bank(out: Path, glyphs: list[Glyph], raw: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Text states of `CAPTIONS_EACH` captions a glyph, (N, K, T, width), the first the plain name; and of the empty prompt."""
    tokenizer, model = CLIPTokenizer.from_pretrained(out / "tokenizer"), text_encoder(out)

    def states(texts: list[str]) -> Tensor:
        ids = tokenizer(texts, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt")["input_ids"]
        return model(ids).last_hidden_state

    kept = out / "captions.pt"  # minutes of work on a slow machine; as old as the tower it was made with
    if kept.is_file() and kept.stat().st_mtime > (out / "clip.pt").stat().st_mtime:
        saved = torch.load(kept, weights_only=True)
        return saved["bank"], saved["empty"]
    rows = []
    for glyph, image in zip(glyphs, raw, strict=True):
        colour = main_colour(image)
        rows.append(states([glyph.name, *(caption(glyph, colour, rng) for _ in range(CAPTIONS_EACH - 1))]).to(torch.bfloat16))
    bank, empty = torch.stack(rows), states([""])[0]
    torch.save({"bank": bank, "empty": empty}, kept)
    return bank, empty


def alphas_cumprod() -> Tensor:
    betas = torch.linspace(SCHEDULER["beta_start"] ** 0.5, SCHEDULER["beta_end"] ** 0.5, SCHEDULER["num_train_timesteps"]) ** 2
    return torch.cumprod(1 - betas, dim=0)


@torch.no_grad()
def top1(unet: UNet2DConditionModel, codec: AutoencoderKL, bank: Tensor, empty: Tensor, scale: float, raw: np.ndarray, every: int) -> float:
    """Retrieval of every `every`-th name with 10 DDIM steps at guidance 2: a quick look, not the evaluation."""
    scheduler = DDIMScheduler(**SCHEDULER)
    scheduler.set_timesteps(10)
    index = torch.arange(0, len(bank), every)
    x = torch.randn(len(index), 4, 16, 16, generator=torch.Generator().manual_seed(0))
    text = torch.cat([empty.expand(len(index), -1, -1), bank[index, 0].float()])
    for t in scheduler.timesteps:
        free, tied = unet(torch.cat([x, x]), t, text).sample.chunk(2)
        x = scheduler.step(free + 2.0 * (tied - free), t, x).prev_sample
    y = torch.cat([codec.decode(chunk / scale).sample for chunk in x.split(16)]).clamp(-1, 1)
    pooled = F.avg_pool2d((y + 1) / 2, 16).permute(0, 2, 3, 1).reshape(len(index), -1)
    nearest = torch.cdist(pooled, torch.from_numpy(layout8(raw))).argmin(1)
    return float((nearest == index).float().mean())


def train(out: Path, minutes: float, cool: float, batch_size: int, resume: bool, seed: int) -> None:
    torch.manual_seed(seed)
    glyphs = choose()
    raw = images(glyphs)
    codec = autoencoder(out)
    z = latents(codec, raw)
    scale = float(1 / z.std())
    if resume:  # the scale that the UNet knows, whatever rounding did to the encoder
        scale = float(torch.load(out / "unet.pt", weights_only=True)["scale"])
    z = z * scale
    bank, empty = caption_bank(out, glyphs, raw, np.random.default_rng(seed))
    unet = UNet2DConditionModel(**CONFIG).to(memory_format=torch.channels_last)
    optimizers = Optimizers(unet, muon_lr=0.02, adam_lr=1e-3, skip=("conv_in", "conv_out"))
    average, steps = Average(unet, 0.999), 0
    if resume:
        saved = torch.load(out / "unet.pt", weights_only=True)
        unet.load_state_dict(saved["model"])
        if saved["optimizers"] is not None:
            optimizers.load_state_dict(saved["optimizers"])
        average.values, average.steps = saved["average"], saved["steps"]
        steps = saved["steps"]
    alphas, clock = alphas_cumprod(), Clock(minutes, warm=0.005, cool=cool)
    shadow = UNet2DConditionModel(**CONFIG).eval()
    print(f"{len(z)} latents, scale {scale:.4f}, {sum(p.numel() for p in unet.parameters()) / 1e6:.2f} M parameters", flush=True)
    last, losses, looks = time.monotonic(), [], 0
    while clock.fraction < 1:
        index = torch.randint(0, len(z), (batch_size,))
        which = torch.where(torch.rand(batch_size) < 0.35, 0, torch.randint(0, CAPTIONS_EACH, (batch_size,)))
        text = bank[index, which].float()
        text[torch.rand(batch_size) < UNCONDITIONAL_SHARE] = empty
        u = torch.rand(batch_size)
        t = (torch.where(torch.rand(batch_size) < 0.3, u, u.sqrt()) * 1000).long()
        a = alphas[t].view(-1, 1, 1, 1)
        noise = torch.randn(batch_size, *z.shape[1:])
        noisy, v = a.sqrt() * z[index] + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * z[index]
        loss = F.mse_loss(unet(noisy.contiguous(memory_format=torch.channels_last), t, text).sample, v)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizers.step(clock.scale())
        average.update(unet)
        steps += 1
        losses.append(loss.item())
        if steps % 50 == 0:
            rate = 50 * batch_size / (time.monotonic() - last)
            print(f"{steps:6d} {clock.fraction:.3f} loss {np.mean(losses[-50:]):.4f} {rate:.1f} img/s", flush=True)
            last = time.monotonic()
        if steps % 200 == 0 or clock.fraction >= 1:
            _save(out, unet, average, optimizers, steps, scale)
        if clock.fraction * minutes > LOOK_MINUTES * (looks + 1) or clock.fraction >= 1:
            looks += 1
            shadow.load_state_dict(average.values)
            print(f"{steps:6d} quick top-1 {top1(shadow, codec, bank, empty, scale, raw, 8):.3f}", flush=True)
            last = time.monotonic()


def _save(out: Path, unet: UNet2DConditionModel, average: Average, optimizers: Optimizers, steps: int, scale: float) -> None:
    state = {"model": unet.state_dict(), "average": average.values, "optimizers": optimizers.state_dict(), "steps": steps, "scale": scale}
    torch.save(state, out / "unet.tmp")
    (out / "unet.tmp").replace(out / "unet.pt")


def assemble(out: Path, target: Path) -> None:
    """Writes the pipeline folder (fp16 safetensors), the CLIP folder, `names.txt` and the bundle defaults."""
    saved = torch.load(out / "unet.pt", weights_only=True)
    unet = UNet2DConditionModel(**CONFIG)
    unet.load_state_dict(saved["average"])
    codec = autoencoder(out)
    codec.register_to_config(scaling_factor=saved["scale"], force_upcast=False)
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    pipeline = StableDiffusionPipeline(
        vae=codec, text_encoder=text_encoder(out), tokenizer=tokenizer, unet=unet, scheduler=DDIMScheduler(**SCHEDULER),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.to(torch.float16).save_pretrained(target, safe_serialization=True)
    model = open_clip.CLIP(**clip.CONFIG)
    model.load_state_dict(torch.load(out / "clip.pt", weights_only=True)["average"])
    clip.save(model, out / "tokenizer", target / "clip")
    (target / "names.txt").write_text("".join(glyph.name + "\n" for glyph in choose()), encoding="utf-8")
    defaults = {"name": "platemark-emoji", "default_steps": 12, "default_guidance": 1.5, "output_size": [512, 512], "domain": "emoji"}
    (target / "platemark.json").write_text(json.dumps(defaults, indent=2) + "\n")


def unpack(source: Path, out: Path) -> None:
    """Checkpoints out of an assembled folder, so that training can go on without the original ones (optimizer state starts anew)."""
    out.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source / "tokenizer", out / "tokenizer", dirs_exist_ok=True)

    def read(name: str) -> dict[str, Tensor]:
        return {key: value.float() for key, value in load_file(source / name).items()}

    torch.save({"average": read("vae/diffusion_pytorch_model.safetensors"), "steps": 0}, out / "vae.pt")
    tower = open_clip.CLIP(**clip.CONFIG)
    tower.load_state_dict(read("clip/open_clip_model.safetensors"), strict=False)  # the causal mask is a constant
    head = torch.nn.Linear(clip.CONFIG["text_cfg"]["width"], 192)
    torch.save({"average": tower.state_dict(), "head": head.state_dict()}, out / "clip.pt")
    weights = read("unet/diffusion_pytorch_model.safetensors")
    scale = json.loads((source / "vae" / "config.json").read_text())["scaling_factor"]
    torch.save({"model": weights, "average": weights, "optimizers": None, "steps": 0, "scale": scale}, out / "unet.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/training"))
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--cool", type=float, default=0.4)
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--assemble", type=Path)
    parser.add_argument("--resume-from", type=Path, help="go on from an assembled pipeline folder instead of checkpoints")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.resume_from:
        unpack(args.resume_from, args.out)
    if args.assemble:
        assemble(args.out, args.assemble)
    else:
        train(args.out, args.minutes, args.cool, args.batch_size, args.resume or args.resume_from is not None, args.seed)


if __name__ == "__main__":
    main()
