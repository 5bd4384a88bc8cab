"""Whether a checkpoint is of a known family, and its parts fit together. By configs alone: whether weights fit is asked in `modules`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from platemark.errors import CheckpointError
from platemark.optimize.parts import Part
from platemark.runtime import family as families
from platemark.runtime.family import Family

UNET, CONTROLNET = "UNet2DConditionModel", "ControlNetModel"
VAES = ("AutoencoderKL", "AutoencoderTiny")
_SIZES = 6  # that a `text_time` UNet reads: original height and width, top and left of the cut, target height and width
_SHARED = (
    "in_channels",
    "block_out_channels",
    "layers_per_block",
    "cross_attention_dim",
    "addition_embed_type",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
)
_USUAL_CONDITION = (16, 32, 96, 256)  # diffusers' default for conditioning_embedding_out_channels
_OTHER_CONTROL = "use a ControlNet made for this checkpoint's family"
Config = Mapping[str, Any]


def family_of(index: Config) -> Family:
    """The family whose pipeline `model_index.json` names. Raises `CheckpointError`."""
    found = index.get("_class_name")
    cards = [families.load_family(name) for name in families.names()]
    for card in cards:
        if found in card.pipelines:
            return card
    known = "; ".join(card.title for card in cards)
    raise CheckpointError(f"model_index.json names the pipeline {found!r}", f"use a checkpoint of a known family: {known}")


def kinds_of(index: Config, family: Family) -> dict[str, str]:
    """Part → class of the networks that the family needs, as `model_index.json` names them. Raises `CheckpointError`."""
    wanted = {text.component: (text.network,) for text in family.texts} | {"unet": (UNET,), "vae": VAES}
    found = {}
    for name, expected in wanted.items():
        kind = named(index, name)
        if kind not in expected:
            missing = kind is None and name.startswith("text_encoder")
            why = ", and a refiner has no text encoder of its own" if missing and family.reads_sizes else ""
            raise CheckpointError(
                f"model_index.json names {kind!r} as {name}{why}", f"use a checkpoint whose {name} is a {' or '.join(expected)}"
            )
        found[name] = str(kind)
    return found


def named(index: Config, name: str) -> str | None:
    """The class that `model_index.json` names for a part; None for none."""
    entry = index.get(name)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None


def check_unet(config: Config, family: Family) -> None:
    """Refuses UNets that need inputs which this build does not make. Raises `CheckpointError`."""
    wanted: dict[str, tuple[Any, ...]] = {
        "in_channels": (4, 9),
        "out_channels": (4,),
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
        "encoder_hid_dim_type": (None, "text_proj"),
        "addition_embed_type": tuple(kind or None for kind in family.addition_embed_types),
    }
    for key, values in wanted.items():
        found = config.get(key, values[0] if key == "in_channels" or None not in values else None)
        if found not in values:
            raise CheckpointError(
                f"unet/config.json has {key} = {found!r}",
                f"use a text-to-image or inpainting checkpoint ({family.title}: {key} is {' or '.join(map(repr, values))})",
            )
    dims = config.get("cross_attention_dim")
    if isinstance(dims, list) and any(dim != dims[0] for dim in dims):
        raise CheckpointError(f"unet/config.json has cross_attention_dim = {dims!r}", "use one whose blocks read the same text")
    if reads_mask(config) and "inpainting" not in family.references:
        raise CheckpointError("unet/config.json has in_channels = 9", f"{family.title} are built without a mask: use one of 4 channels")


def reads_mask(config: Config) -> bool:
    """Whether a UNet reads a mask and masked latents beside its four latent channels."""
    return bool(config.get("in_channels", 4) == 9)


def state_width(config: Config) -> int:
    """Width of the text states that a UNet reads: `encoder_hid_dim` where it projects them first."""
    dim = config.get("encoder_hid_dim") or config["cross_attention_dim"]
    return int(dim if isinstance(dim, int) else dim[0])


def check_together(parts: Mapping[str, Part], family: Family) -> None:
    """Raises `CheckpointError` where widths do not fit: what text encoders give, and what UNet and ControlNet read."""
    unet = parts["unet"].config
    texts = {text.component: parts[text.component].config for text in family.texts}
    given, read = sum(int(config["hidden_size"]) for config in texts.values()), state_width(unet)
    if given != read:
        raise CheckpointError(
            f"unet reads text states {read} wide, and {' and '.join(texts)} give {given}", "use a checkpoint whose networks belong together"
        )
    if len({config["max_position_embeddings"] for config in texts.values()}) > 1:
        raise CheckpointError(f"{' and '.join(texts)} read different numbers of tokens", "use a checkpoint whose networks belong together")
    if family.reads_sizes:
        pooled = int(texts[family.texts[-1].component].get("projection_dim", 512))
        _check_sizes("unet", unet, pooled)
    if "controlnet" in parts:
        _check_control(parts["controlnet"].config, unet, 2 ** (levels(parts["vae"]) - 1))


def recommended(family: Family, unet: Config, scheduler: Config) -> tuple[int, float]:
    """Steps and guidance of a checkpoint that recommends none: its family's, but few and none for those distilled to need no more.

    Those are known by their scheduler: LCM's, or Euler's with trailing steps and a network that predicts noise (the Turbo models).
    """
    kind, embedded = str(scheduler.get("_class_name")), bool(unet.get("time_cond_proj_dim"))
    if kind == "LCMScheduler":
        return 4, 8.5 if embedded else 1.0
    euler = kind in ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler") and scheduler.get("timestep_spacing") == "trailing"
    if euler and scheduler.get("prediction_type", "epsilon") == "epsilon" and not scheduler.get("rescale_betas_zero_snr"):
        return 4, 0.0
    return family.default_steps, family.default_guidance


def levels(vae: Part) -> int:
    """Levels of a VAE's decoder: pixels per latent cell halve once less often."""
    key = "decoder_block_out_channels" if vae.kind == "AutoencoderTiny" else "block_out_channels"
    return len(vae.config[key])


def _check_sizes(name: str, config: Config, pooled: int) -> None:
    read, width = config.get("projection_class_embeddings_input_dim"), config.get("addition_time_embed_dim")
    if not isinstance(width, int) or read != pooled + _SIZES * width:
        raise CheckpointError(
            f"{name}/config.json has projection_class_embeddings_input_dim = {read!r} and addition_time_embed_dim = {width!r}, and the "
            f"pooled text is {pooled} wide",
            f"use a checkpoint that reads a pooled text and {_SIZES} sizes (a refiner reads another number)",
        )


def _check_control(config: Config, unet: Config, factor: int) -> None:
    """A ControlNet's residuals must be of the UNet's shapes, and its condition of the pictures' size."""
    if reads_mask(unet):
        raise CheckpointError("a ControlNet beside an inpainting UNet is not built", "use a UNet of 4 channels, or leave --controlnet out")
    for key in _SHARED:
        theirs = unet.get(key)
        if config.get(key, theirs) != theirs:
            raise CheckpointError(f"controlnet/config.json has {key} = {config[key]!r}, and the unet {theirs!r}", _OTHER_CONTROL)
    for key in ("global_pool_conditions", "class_embed_type"):
        if config.get(key):
            raise CheckpointError(f"controlnet/config.json has {key} = {config[key]!r}", "use a ControlNet that answers with maps")
    halvings = len(config.get("conditioning_embedding_out_channels") or _USUAL_CONDITION) - 1
    if 2**halvings != factor:
        raise CheckpointError(f"controlnet halves its picture {halvings} times, the vae {factor.bit_length() - 1}", _OTHER_CONTROL)
