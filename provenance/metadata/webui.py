"""The `parameters` text of Stable Diffusion web UIs: prompt, negative prompt, and one line of settings. Knows no file format.

The line is a list of `Name: value`; a value with a comma, colon, quote or line break is a JSON string. Readers take a last
line with three or more pairs for the settings, and what is before it for the prompts.
"""

from __future__ import annotations

import json

from platemark.provenance.record import Facts

_SAMPLERS = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "euler": "Euler",
    "euler-a": "Euler a",
    "heun": "Heun",
    "dpm++2m": "DPM++ 2M",
    "dpm++2m-karras": "DPM++ 2M Karras",
    "dpm++2m-sde": "DPM++ 2M SDE",
    "dpm++2m-sde-karras": "DPM++ 2M SDE Karras",
    "dpm++sde": "DPM++ SDE",
    "dpm++sde-karras": "DPM++ SDE Karras",
    "unipc": "UniPC",
    "lcm": "LCM",
    "tcd": "TCD",
}
_UNNAMED = "checkpoint"  # the scheduler is the checkpoint's own: no name that a web UI would know
_HASH = 10  # hex digits of a model hash, as web UIs show it
_SPECIAL = set(',:"\n\\')


def parameters_text(facts: Facts, *, size: tuple[int, int], generator: str) -> str:
    """The text for one picture; `size` is (height, width) as delivered. Without prompts in the facts it has the settings line alone."""
    settings = facts.settings
    pairs = {
        "Steps": settings.get("num_inference_steps") or settings.get("steps") or "0",
        "Sampler": _SAMPLERS.get(name := settings.get("scheduler", _UNNAMED), name if name != _UNNAMED else ""),
        "CFG scale": settings.get("guidance_scale", "0"),
        "Seed": str(facts.seed),
        "Size": f"{size[1]}x{size[0]}",
        "Model hash": facts.model_sha256[:_HASH],
        "Model": facts.model_name,
        "Denoising strength": settings.get("strength", ""),
        "Version": generator,
    }
    line = ", ".join(f"{name}: {_quoted(value)}" for name, value in pairs.items() if value)
    lines = [facts.prompt] if facts.prompt else []
    if facts.negative_prompt:
        lines.append(f"Negative prompt: {facts.negative_prompt}")
    return "\n".join([*lines, line])


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if _SPECIAL & set(value) else value
