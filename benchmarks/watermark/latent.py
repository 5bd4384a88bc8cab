"""The mark in the initial noise: how often it is read after what happens to pictures, on the embedded model.

    python -m benchmarks.watermark.latent --pictures 40 --out benchmarks/results/watermark_latent.md

Pictures of the embedded model (128 pixels, delivered at 512) from marked noise: random names and seeds, default steps and guidance.
Detection is at p < 1e-6 a picture and key. False positives: every picture, and as many unmarked ones, read with keys that made none of
them. The pictures carry the pixel mark too, for comparison. Redrawing uses the model itself, at its own size and at the picture's. Needs
no torch.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import shlex
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.watermark import signal
from benchmarks.watermark.images import Pixels
from benchmarks.watermark.table import wilson
from benchmarks.watermark.trial import keys
from benchmarks.whole_process import machine
from platemark.models import embedded
from platemark.provenance.watermark.detect import detect
from platemark.provenance.watermark.embed import embed
from platemark.provenance.watermark.inversion import Inverter
from platemark.provenance.watermark.key import WatermarkKey
from platemark.provenance.watermark.latent import noise, read_noise, residue_of
from platemark.provenance.watermark.payload import Payload
from platemark.runtime.bundle import open_bundle
from platemark.runtime.pipeline import Pipeline
from platemark.runtime.request import GenerationRequest
from platemark.runtime.schedulers import make_scheduler
from platemark.runtime.sizes import RenderSize

STRENGTH, STEPS = 0.3, 20
WRONG_KEYS = 250  # a picture
Results = dict[str, list[tuple[bool, bool, float]]]  # row → (latent read right, pixel mark read right, score)


@functools.cache
def inverter() -> Inverter:
    return Inverter(Pipeline.load(open_bundle(embedded())))


def to_latents(picture: Pixels) -> np.ndarray:
    manifest = inverter().pipeline.bundle.manifest
    sample = np.ascontiguousarray((picture.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)[None])
    mean = inverter().pipeline.engine("vae_encoder").run({"sample": sample})["latent_mean"]
    return np.asarray(mean * np.float32(manifest.scaling_factor))


def to_picture(latents: np.ndarray) -> Pixels:
    scaled = latents / np.float32(inverter().pipeline.bundle.manifest.scaling_factor)
    decoded = inverter().pipeline.engine("vae_decoder").run({"latent_sample": scaled})["sample"][0]
    return signal.rounded(127.5 * (decoded.transpose(1, 2, 0) + 1))


def resized(picture: Pixels, side: int) -> Pixels:
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS))


def img2img(picture: Pixels, seed: int, side: int) -> Pixels:
    """Noised to strength 0.3 and denoised again with the empty prompt, at `side` pixels."""
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "v_prediction"}
    stepper = make_scheduler("ddim", {**config, "timestep_spacing": "trailing", "clip_sample": False}).plan(STEPS)
    first = STEPS - int(STEPS * STRENGTH)
    latents = to_latents(resized(picture, side))
    fresh = np.random.default_rng(seed).standard_normal(latents.shape).astype(np.float32)
    latents = stepper.add_noise(latents, fresh, first)
    network = inverter().pipeline.unprompted(RenderSize(side, side, resampled=False))
    for i in range(first, STEPS):
        latents = stepper.step(network(latents, stepper.timesteps[i : i + 1]), i, latents)
    return resized(to_picture(latents), len(picture))


CHANGES: dict[str, Callable[[Pixels, int], Pixels]] = {
    "none": lambda picture, seed: picture,
    "JPEG 50": lambda picture, seed: signal.jpeg(picture, 50),
    "resize 50 %": lambda picture, seed: resized(picture, len(picture) // 2),
    "blur σ2": lambda picture, seed: signal.blur(picture, 2),
    "noise σ25": lambda picture, seed: signal.noise(picture, np.random.default_rng(seed), 25),
    "crop to 90 % of the area": lambda picture, seed: np.ascontiguousarray(picture[13:-13, 13:-13]),
    "VAE regeneration, 512": lambda picture, seed: to_picture(to_latents(picture)),
    "VAE regeneration, 128": lambda picture, seed: resized(to_picture(to_latents(resized(picture, 128))), len(picture)),
    "img2img 0.3, 512": lambda picture, seed: img2img(picture, seed, 512),
    "img2img 0.3, 128": lambda picture, seed: img2img(picture, seed, 128),
}


def picture_of(number: int, key: WatermarkKey | None) -> tuple[Pixels, int]:
    """A picture from marked noise (or plain, without a key), and its content id."""
    pipeline, rng = inverter().pipeline, np.random.default_rng([number, 0x1A7E, key is None])
    names = (embedded() / "names.txt").read_text(encoding="utf-8").split("\n")
    prompt, seed, content_id = names[int(rng.integers(len(names) - 1))], int(rng.integers(1 << 32)), int(rng.integers(1 << 42))
    manifest = pipeline.bundle.manifest
    shape = manifest.latent_channels, *(side // manifest.vae_scale_factor for side in manifest.native_size)
    latents = None if key is None else noise(seed, shape, content_id, key)[None]
    return pipeline.generate(GenerationRequest.make(manifest, prompt=prompt, seed=seed), latents=latents).images[0], content_id


def trial(number: int, results: Results, chance: list[float]) -> None:
    """One marked picture through every change, and one plain picture; their p-values under wrong keys go to `chance`."""
    key = keys()[number % len(keys())]
    picture, content_id = picture_of(number, key)
    both = embed(picture, Payload(content_id, issuer=7), key, rng=np.random.default_rng(number)).image
    for row, change in CHANGES.items():
        after = change(both, number)
        guesses = inverter().guesses(after)
        found, pixel = read_noise(guesses, [key]), detect(after, key)
        results[row].append((found.residue == residue_of(content_id), pixel.payload == Payload(content_id, issuer=7), found.score))
        if row == "none":
            chance += wrong(guesses, number)
    chance += wrong(inverter().guesses(picture_of(number, None)[0]), number)


def wrong(guesses: list[np.ndarray], number: int) -> list[float]:
    """p-values under keys that made nothing."""
    made = (WatermarkKey.from_secret(hashlib.sha256(f"platemark wrong key {number} {n}".encode()).digest()) for n in range(WRONG_KEYS))
    return [read_noise(guesses, [key]).p_value for key in made]


def written(results: Results, chance: list[float]) -> str:
    """The whole text of the table."""
    command = shlex.join(["python", "-m", "benchmarks.watermark.latent", *sys.argv[1:]])
    values = np.array(chance)
    lines = ["The mark in the initial noise, embedded model, detection at p < 1e-6 a picture and key.", f"`{command}`, on {machine()}.", ""]
    lines.append("| change | n | latent mark read | 95 % interval | median score | least | pixel mark of the same pictures (fast search) |")
    lines.append("|---|---|---|---|---|---|---|")
    for row, found in results.items():
        hits, count, scores = sum(one[0] for one in found), len(found), [one[2] for one in found]
        low, high = wilson(hits, count)
        pixel = sum(one[1] for one in found) / count
        cells = (
            row,
            count,
            f"{hits / count:.0%}",
            f"{100 * low:.0f} to {100 * high:.0f}",
            f"{np.median(scores):.1f}",
            f"{min(scores):.1f}",
            f"{pixel:.0%}",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    shares = ", ".join(f"{(values < bound).mean():.5f} under {bound:g}" for bound in (0.1, 0.01, 0.001))
    lines += [
        "",
        f"Wrong keys: {values.size} readings, {int((values < 1e-6).sum())} detected; p-values: {shares}; least {values.min():.1e}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    results: Results = defaultdict(list)
    chance: list[float] = []
    text = ""
    for number in range(given.pictures):
        trial(number, results, chance)
        print(f"{number + 1} of {given.pictures}", file=sys.stderr)
        text = written(results, chance)
        if given.out:
            given.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
