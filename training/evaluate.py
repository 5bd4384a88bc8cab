"""Measures the shipped bundle and writes the committed table and the contact sheet.

    python -m training.evaluate [--bundle DIR] [--steps 12] [--every 1]

For every name: generate with the plain name as prompt and the fixed seed of its index; the picture's 8×8 average-pooled colours are
compared with those of all originals. Beside it: the same figures for the autoencoder's own reconstructions (the ceiling), its PSNR,
and the CLIP's image → text retrieval on originals and on generated pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from platemark.models import embedded
from platemark.runtime.backends.onnxruntime import compile_graph
from platemark.runtime.bundle import Bundle, open_bundle
from platemark.runtime.pipeline import Pipeline
from platemark.runtime.request import GenerationRequest
from platemark.runtime.tokenizer import Tokenizer
from platemark.safety.clip import ClipModel, read_preprocess
from training.glyphs import choose, images, layout8

Pictures = NDArray[np.uint8]


def generated(bundle: Bundle, names: list[str], steps: int, guidance: float | None) -> Pictures:
    """uint8 (N, 128, 128, 3): name i with seed i, at the native size."""
    pipeline, out = Pipeline.load(bundle), []
    height, width = bundle.manifest.native_size
    for i, name in enumerate(names):
        request = GenerationRequest.make(
            bundle.manifest, prompt=name, seed=i, num_inference_steps=steps, guidance_scale=guidance, height=height, width=width
        )
        out.append(pipeline.generate(request).images[0])
    return np.stack(out)


def reconstructed(bundle: Bundle, originals: Pictures) -> Pictures:
    """uint8 (N, 128, 128, 3): encoder's mean, then decoder."""
    encoder = compile_graph(bundle.root / bundle.manifest.components["vae_encoder"].graph)
    decoder = compile_graph(bundle.root / bundle.manifest.components["vae_decoder"].graph)
    out = []
    for chunk in np.array_split(originals, max(1, len(originals) // 16)):
        pixels = (chunk.astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2)
        mean = encoder.run({"sample": np.ascontiguousarray(pixels)})["latent_mean"]
        decoded = decoder.run({"latent_sample": mean})["sample"]
        out.append(np.clip((decoded + 1) * 127.5, 0, 255).round().astype(np.uint8).transpose(0, 2, 3, 1))
    return np.concatenate(out)


def retrieval(pictures: Pictures, index: NDArray[np.int64], originals: Pictures) -> tuple[float, float]:
    """(top-1, top-5): share of pictures whose own original is the nearest, or among the five nearest, by 8×8 pooled colour."""
    ours, theirs = layout8(pictures), layout8(originals)
    distance = ((ours[:, None] - theirs[None]) ** 2).sum(-1)
    rank = (distance < distance[np.arange(len(index)), index][:, None]).sum(1)
    return float((rank == 0).mean()), float((rank < 5).mean())


def psnr(a: Pictures, b: Pictures) -> tuple[float, float]:
    """(mean of per-image PSNR, PSNR of the pooled error), dB."""
    mse = ((a.astype(np.float64) - b) ** 2).mean(axis=(1, 2, 3)) / 255**2
    return float((-10 * np.log10(mse)).mean()), float(-10 * np.log10(mse.mean()))


def contact_sheet(pictures: Pictures, path: Path, columns: int = 20) -> None:
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * 66, rows * 66), "white")
    for i, picture in enumerate(pictures):
        tile = Image.fromarray(picture).resize((64, 64), Image.Resampling.LANCZOS)
        sheet.paste(tile, (i % columns * 66 + 1, i // columns * 66 + 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def clip_top1(bundle: Bundle, pictures: Pictures, index: NDArray[np.int64], names: list[str]) -> float:
    """Share of pictures whose nearest plain name, by CLIP cosine, is their own."""
    folder = bundle.root / "clip"
    tokenizer = Tokenizer.load(folder, read_preprocess(folder).context_length)
    clip = ClipModel.load(folder, compile_graph(folder / "image.onnx"), compile_graph(folder / "text.onnx"), tokenizer.encode_batch)
    image, text = np.stack([clip.embed_image(picture) for picture in pictures]), clip.embed_texts(names)
    return float(((image @ text.T).argmax(1) == index).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=embedded())
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--every", type=int, default=1, help="evaluate every n-th name only")
    parser.add_argument("--table", type=Path, help="write the table here, e.g. training/EVALUATION.md")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of 100 random names here")
    parser.add_argument("--pictures", type=Path, help="keep the generated pictures here (.npz), for benchmarks.safety_names")
    args = parser.parse_args()
    bundle = open_bundle(args.bundle)
    glyphs = choose()
    originals, names = images(glyphs), [glyph.name for glyph in glyphs]
    index = np.arange(0, len(names), args.every)
    made = generated(bundle, [names[i] for i in index], args.steps, args.guidance)
    if args.pictures:
        np.savez_compressed(args.pictures, index=index, pictures=made)
    again = reconstructed(bundle, originals)
    top1, top5 = retrieval(made, index, originals)
    ceiling1, ceiling5 = retrieval(again, np.arange(len(names)), originals)
    mean, pooled = psnr(again, originals)
    guidance = bundle.manifest.default_guidance if args.guidance is None else args.guidance
    rows = [
        "| measure | reached | wanted |",
        "|---|---|---|",
        f"| generated ({len(index)} names, {args.steps} steps, guidance {guidance:g}), top-1 of {len(names)} | {top1:.1%} | 75 % |",
        f"| generated pictures, top-5 | {top5:.1%} | 90 % |",
        f"| ceiling: the autoencoder's reconstructions, top-1 / top-5 | {ceiling1:.1%} / {ceiling5:.1%} | - |",
        f"| autoencoder PSNR, mean over pictures / pooled | {mean:.2f} / {pooled:.2f} dB | 25 dB |",
        f"| CLIP image → text top-1, originals | {clip_top1(bundle, originals, np.arange(len(names)), names):.1%} | 90 % |",
        f"| CLIP image → text top-1, generated pictures | {clip_top1(bundle, made, index, names):.1%} | - |",
    ]
    print("\n".join(rows))
    if args.table:
        command = f"python -m training.evaluate --steps {args.steps}" + (f" --every {args.every}" if args.every > 1 else "")
        args.table.write_text(
            f"# The embedded model, measured\n\n`{command}`, prompt = plain name, seed = index of the name.\n\n" + "\n".join(rows) + "\n"
        )
    if args.sheet:
        chosen = np.sort(np.random.default_rng(0).permutation(len(index))[:100])
        contact_sheet(made[chosen], args.sheet)


if __name__ == "__main__":
    main()
