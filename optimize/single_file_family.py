"""Which family a single file is of, and what the family fixes that no tensor tells: sizes, noise schedule, pipeline. Reads no values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from platemark.errors import CheckpointError
from platemark.optimize.weights import StoredTensor

Family = Literal["sd1", "sd2", "sdxl"]
Tensors = dict[str, StoredTensor]
PREDICTIONS = ("epsilon", "v_prediction", "sample")
# The networks, by the beginning of their tensors' names; a text encoder of SD 1.x or 2.x, then SDXL's.
UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
OPEN_CLIP = ("cond_stage_model.model.", "conditioner.embedders.1.model.")
_REFINER = "conditioner.embedders.0.model."
_V_MARK, ZERO_SNR_MARK = "v_pred", "ztsnr"  # empty tensors by which trainers mark SDXL files
_SPELLED = {"epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
# Of each family: pixels a side that it was trained on, and the VAE's scaling factor.
TRAINED = {"sd1": (512, 0.18215), "sd2": (512, 0.18215), "sdxl": (1024, 0.13025)}
_SD2_V_PIXELS = 768


def family_of(tensors: Tensors) -> Family:
    """By which text encoders are beside the UNet. Raises `CheckpointError`, naming what the file is instead where that shows."""
    has = {prefix: any(name.startswith(prefix) for name in tensors) for prefix in (UNET, VAE, *CLIP, *OPEN_CLIP, _REFINER)}
    if any(".lora_" in name or name.startswith("lora_") for name in tensors):
        raise CheckpointError("this is a LoRA, not a checkpoint", "build from its checkpoint, and add it with --lora")
    if not has[UNET]:
        raise CheckpointError(
            f"there is no UNet in it ({UNET}*)", "use a whole SD 1.x, SD 2.x or SDXL checkpoint, or the folder that diffusers saved"
        )
    if any(name.startswith((f"{UNET}joint_blocks.", f"{UNET}double_blocks.")) for name in tensors):
        raise CheckpointError("its network is a transformer (SD 3, Flux), not a UNet", "use an SD 1.x, SD 2.x or SDXL checkpoint")
    if not has[VAE]:
        raise CheckpointError(f"there is no VAE in it ({VAE}*)", "use the file that has its VAE baked in")
    if has[_REFINER]:
        raise CheckpointError("this is an SDXL refiner, which renders nothing by itself", "use the SDXL base checkpoint")
    if has[CLIP[1]] or has[OPEN_CLIP[1]]:
        return "sdxl"
    if has[OPEN_CLIP[0]]:
        return "sd2"
    if has[CLIP[0]]:
        return "sd1"
    raise CheckpointError(
        "there is no text encoder in it (cond_stage_model.* or conditioner.*)", "use the file that has its text encoder in it"
    )


def prediction_of(family: Family, tensors: Tensors, metadata: Mapping[str, str]) -> str:
    said = _SPELLED.get(metadata.get("modelspec.prediction_type", "").strip().lower())
    if said is not None:
        return said
    if _V_MARK in tensors:
        return "v_prediction"
    if family == "sd2":
        raise CheckpointError(
            "SD 2.x files do not say whether they predict noise or v, and this one has no metadata",
            "give --prediction-type epsilon (2.x base, 512 pixels) or v_prediction (2.x, 768 pixels)",
        )
    return "epsilon"


def pixels_of(family: Family, prediction: str, metadata: Mapping[str, str]) -> int:
    """Pixels a side that the model was trained on."""
    said = re.fullmatch(r"(\d{2,4})x(\d{2,4})", metadata.get("modelspec.resolution", "").strip().lower())
    if said is not None and int(said[1]) % 64 == 0 and int(said[1]) > 0:
        return int(said[1])
    return _SD2_V_PIXELS if family == "sd2" and prediction == "v_prediction" else TRAINED[family][0]


def index_of(family: Family, unet: dict[str, Any]) -> dict[str, Any]:
    kind = "StableDiffusionXL" if family == "sdxl" else "StableDiffusion"
    if unet["in_channels"] != unet["out_channels"]:
        kind += "Inpaint"
    entries: dict[str, Any] = {
        "_class_name": f"{kind}Pipeline",
        "scheduler": ["diffusers", "EulerDiscreteScheduler" if family == "sdxl" else "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if family == "sdxl":
        second = {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"], "tokenizer_2": ["transformers", "CLIPTokenizer"]}
        return entries | second | {"force_zeros_for_empty_prompt": True}
    return entries | {"feature_extractor": [None, None], "safety_checker": [None, None]}


def scheduler_of(family: Family, prediction: str, *, zero_snr: bool) -> dict[str, Any]:
    """The family's noise schedule: β from 0.00085 to 0.012, linear in its root, over 1000 steps."""
    config: dict[str, Any] = {
        "_class_name": "EulerDiscreteScheduler" if family == "sdxl" else "DDIMScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "prediction_type": prediction,
        "steps_offset": 1,
        "timestep_spacing": "trailing" if zero_snr else "leading",
        **({"rescale_betas_zero_snr": True} if zero_snr else {}),
    }
    own = (
        {"interpolation_type": "linear", "use_karras_sigmas": False}
        if family == "sdxl"
        else {"clip_sample": False, "set_alpha_to_one": False}
    )
    return config | own
