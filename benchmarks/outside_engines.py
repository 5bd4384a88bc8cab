"""What everything outside the engines costs with the shapes of Stable Diffusion 1.5, beside the time of its real UNet.

    python -m benchmarks.outside_engines [--runs 5] [--steps 50] [--unet-ms MS --unet-is TEXT] [--table FILE]

`platemark bench --breakdown` tells this for any bundle. Where no SD 1.5 weights are at hand, this measures the same code with stand-ins for
the three networks that give arrays of their exact shapes at once (text 77×768, latents 4×64×64, picture 512×512): samplers, guidance,
tokenizing, batching, arithmetic around the decoder and PNG are the real ones. `--unet-ms` is the time of one real call at batch 2, and
`--unet-is` says where it was measured; without them the UNet of SD 1.5's config is built with random weights in torch (3.4 GiB) and timed
here, in float32. The last column is the fastest UNet call with which all of it still stays within 3 % of the denoise time.

All of it runs on one thread, so processor time is measured, which other work on the machine does not lengthen.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.whole_process import machine
from platemark.bench.statistics import Spread, spread
from platemark.imaging import encode
from platemark.models import embedded
from platemark.runtime.bundle import Bundle, open_bundle
from platemark.runtime.engine import Array, TensorSpec
from platemark.runtime.pipeline import Pipeline
from platemark.runtime.request import GenerationRequest

PROMPT = "an oil painting of a lighthouse on a cliff at dusk, waves breaking, warm light in the windows, highly detailed"
NEGATIVE = "blurry, low quality, text"
TARGET = 0.03  # of the denoise time
SD15: dict[str, Any] = {
    "native_size": (512, 512), "output_size": (512, 512), "latent_channels": 4, "vae_scale_factor": 8, "scaling_factor": 0.18215,
    "shift_factor": 0.0, "max_tokens": 77, "default_guidance": 7.5,
}  # fmt: skip


class StandIn:
    """A network that gives a fixed array at once, of the rows that it is asked for; counts its own time, and the time between its calls."""

    def __init__(self, name: str, takes: tuple[str, ...], gives: str, rows: Array) -> None:
        self.inputs = tuple(TensorSpec(one, np.dtype(np.float32), ("batch",)) for one in takes)
        self.outputs = (TensorSpec(gives, np.dtype(np.float32), ("batch", *rows.shape[1:])),)
        self.name, self.seconds, self.between = name, 0.0, 0.0
        self._ended: float | None = None
        self._gives, self._rows = gives, rows

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        began = time.process_time()
        self.between += 0.0 if self._ended is None else began - self._ended
        n = len(next(iter(inputs.values())))
        found = {self._gives: self._rows[:n].copy()}
        self._ended = time.process_time()
        self.seconds += self._ended - began
        return found

    def take(self) -> tuple[float, float]:
        """Milliseconds in calls and between them since the last `take`."""
        taken = self.seconds * 1000, self.between * 1000
        self.seconds, self.between, self._ended = 0.0, 0.0, None
        return taken


def stand_ins() -> dict[str, StandIn]:
    """The three networks. The UNet's noise is small, so that latents stay in range; the picture is photograph-like to a PNG encoder."""
    rng = np.random.default_rng(0)
    picture = np.cumsum(rng.normal(size=(1, 3, 512, 512)), axis=3, dtype=np.float64) * 0.03 + rng.normal(size=(1, 3, 512, 512)) * 0.02
    return {
        "text_encoder": StandIn("text", ("input_ids",), "last_hidden_state", rng.normal(size=(16, 77, 768)).astype(np.float32)),
        "unet": StandIn(
            "unet", ("sample", "timestep", "encoder_hidden_states"), "out_sample", rng.normal(size=(16, 4, 64, 64)).astype(np.float32)
        ),
        "vae_decoder": StandIn("decoder", ("latent_sample",), "sample", np.clip(picture, -1, 1).astype(np.float32)),
    }


def sd15_pipeline() -> tuple[Pipeline, dict[str, StandIn]]:
    """The embedded bundle with SD 1.5's numbers in its manifest, on the stand-ins."""
    opened = open_bundle(embedded())
    engines = stand_ins()
    bundle = Bundle(opened.root, opened.manifest.model_copy(update=SD15), opened.sha256)
    return Pipeline(bundle, _never, dict(engines)), engines


def _never(path: Path) -> StandIn:
    raise AssertionError(f"{path.name} was to be compiled")


def measured(runs: int, steps: int, schedulers: tuple[str, ...]) -> Iterator[tuple[str, Spread, Spread, Spread]]:
    """(scheduler, ms around the networks, ms of them in the denoise loop, ms of PNG) of a whole render with guidance."""
    for name in schedulers:
        pipeline, engines = sd15_pipeline()
        around, loop, png = [], [], []
        for run in range(runs + 1):
            request = GenerationRequest.make(
                pipeline.bundle.manifest,
                prompt=PROMPT + " " * run,
                negative_prompt=NEGATIVE,
                seed=run,
                num_inference_steps=steps,
                scheduler=name,
            )
            began = time.process_time()
            output = pipeline.generate(request)
            rendered = time.process_time()
            encode(output.images[0], "png")
            ended = time.process_time()
            spent = {key: one.take() for key, one in engines.items()}
            if run:  # the first one warms up
                around.append((rendered - began) * 1000 - sum(inside for inside, _ in spent.values()))
                loop.append(spent["unet"][1])
                png.append((ended - rendered) * 1000)
        yield name, spread(around), spread(loop), spread(png)


def unet_ms(calls: int = 2) -> float:
    """One call of a random-weight UNet with SD 1.5's config (diffusers' defaults, 768 wide), batch 2, float32, in torch."""
    import torch
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768).eval()
    sample, text = torch.randn(2, 4, 64, 64), torch.randn(2, 77, 768)
    took = []
    with torch.inference_mode():
        for _ in range(calls):
            began = time.perf_counter()
            unet(sample, torch.tensor([500, 500]), encoder_hidden_states=text)
            took.append((time.perf_counter() - began) * 1000)
    return min(took)


def table(runs: int, steps: int, unet: float, how: str) -> str:
    """Markdown."""
    lines = [
        f"{steps} steps, guidance 7.5, 512×512; the least of {runs} runs. One UNet call (batch 2): {unet:.1f} ms ({how}).", "",
        "| sampler | around the networks, ms | of that in the denoise loop | a step | PNG, ms | all, of the denoise time | 3 % at |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, around, loop, png in measured(runs, steps, ("ddim", "euler", "dpm++2m")):
        outside = around.min + png.min
        share, least = outside / (unet * steps + loop.min), (outside / TARGET - loop.min) / steps
        figures = f"{around.min:.1f} | {loop.min:.1f} | {loop.min / steps:.2f} | {png.min:.1f}"
        lines.append(f"| {name} | {figures} | {100 * share:.2f} % | {least:.1f} ms a call |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--unet-ms", type=float, help="one real UNet call at batch 2; without it, torch times a random-weight one")
    parser.add_argument("--unet-is", default="as given", metavar="TEXT", help="where and how that was measured")
    parser.add_argument("--table", type=Path, help="write the table here, e.g. benchmarks/results/outside_engines.md")
    args = parser.parse_args()
    how = args.unet_is if args.unet_ms else "random weights, torch float32, timed in this run"
    text = table(args.runs, args.steps, args.unet_ms or unet_ms(), how)
    print(text)
    if args.table:
        command = shlex.join(["python", "-m", "benchmarks.outside_engines", *sys.argv[1:]])
        head = f"# Outside the engines, with the shapes of Stable Diffusion 1.5\n\n`{command}`, on {machine()}\n\n"
        args.table.write_text(f"{head}{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
