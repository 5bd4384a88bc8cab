"""Reads a policy: what is checked, how strictly, and what happens then. Strict TOML: a key that is not known is refused by its name.

    version = 2
    id = "studio"
    fail = "closed"                     # a check that cannot run refuses the request; there is no other value
    image_filter = "available"          # "required": no pictures from a bundle without an image filter for its domain
    timeout_seconds = 30.0              # one look of one detector; over it the request is refused
    [provenance]
    require_watermark = true
    [regenerate]
    max = 2                             # renders anew, with another seed, before the picture counts as blocked
    [audit]
    enabled = true
    [people]
    real_face_input = "deny"            # deny, consent (a reference must be given), allow
    [[detectors]]
    name = "nsfw"                       # beside those that the locked rules need anyway
    sha256 = "…"                        # optional: the model that it must be
    [[detectors]]
    name = "clip"
    path = "clip-vit-b-32"              # an exported CLIP folder beside this file; without it, the bundle's own CLIP
    [categories.weapon.prompt]
    threshold = 0.5                     # a score from here on is a finding
    action = "block"                    # allow (only noted), flag, block
    terms = ["dagger"]                  # words or phrases, any case; plurals and common disguises match too
    exceptions = ["dagger fern"]        # phrases inside which a term means nothing
    [categories.weapon.output_image]
    threshold = 0.5
    action = "block"                    # allow, flag, blur, regenerate, block
    severity = {low = 0.3, medium = 0.6, high = 0.9}
    concepts = ["dagger"]               # what the bundle's CLIP looks for
    [[rules]]                           # combinations; the locked ones are built in and cannot be lifted
    id = "armed_child"
    all = [{signal = "weapon", at_least = "medium"}, {signal = "minor_term"}]
    action = "block"

`extends = "standard"` starts from a preset: tables are merged key by key, `detectors` and `rules` by name, and what the preset
has locked can only be made stricter. platemark.safety.policy_model shows every key. Knows nothing of how a prompt or a picture is checked.
"""

from __future__ import annotations

import hashlib
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from platemark.errors import PolicyError
from platemark.safety.policy_lock import loosened
from platemark.safety.policy_model import Policy, PolicyFile

DEFAULT = "standard"
MAX_BYTES = 1 << 20
_BY = {"detectors": "name", "rules": "id"}  # lists that are merged entry by entry, and what names an entry
_REMEDY = "correct the policy file; platemark.safety.policy shows every key"


def presets() -> tuple[str, ...]:
    """Names of the policies that come with Platemark."""
    return tuple(sorted(f.name.removesuffix(".toml") for f in _presets().iterdir() if f.name.endswith(".toml")))


def load_policy(source: str | Path | None = None) -> Policy:
    """Reads a policy: a preset by name, a TOML file, or (None) the preset `standard`.

    A string that names a preset means the preset, even where a file of that name lies in the working folder. Raises `PolicyError`,
    which names the file and the key.
    """
    name = DEFAULT if source is None else str(source)
    if not isinstance(source, Path) and name in presets():
        return parse_policy(_preset(name), f"{name}.toml")
    path = Path(name)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else "not a usable path"
        raise PolicyError(
            f"cannot read the policy {path.name!r}: {cause}", f"give a TOML file, or one of {', '.join(presets())}"
        ) from error
    return _placed(parse_policy(data, path.name), path.parent)


def parse_policy(data: bytes, file: str) -> Policy:
    """The policy in `data` (TOML, UTF-8). Raises `PolicyError` naming `file` and the key."""
    if len(data) > MAX_BYTES:
        raise PolicyError(f"{file} is larger than {MAX_BYTES >> 20} MiB", _REMEDY)
    content = _toml(data, file)
    base = _base_of(content, file)
    policy = _checked(_resolved(content, file), _digest(data, file), file)
    if base and (complaint := loosened(parse_policy(_preset(base), f"{base}.toml"), policy)):
        remedy = f"the preset '{base}' has it locked: make it stricter, or write a policy without `extends`"
        raise PolicyError(f"{file}: {complaint}", remedy)
    return policy


def _placed(policy: Policy, folder: Path) -> Policy:
    """The policy with the path that it names taken from the folder of its file, wherever the program was called."""
    rules = tuple(one if one.path is None else one.model_copy(update={"path": str(folder / one.path)}) for one in policy.detectors)
    return policy.model_copy(update={"detectors": rules})


def _base_of(content: dict[str, Any], file: str) -> str | None:
    """The preset that `content` extends. Presets may extend presets; none extends itself."""
    base = content.get("extends")
    if base is not None and (not isinstance(base, str) or base not in presets() or f"{base}.toml" == file):
        raise PolicyError(f"{file}: extends: there is no preset {str(base)[:40]!r} to extend", f"use one of {', '.join(presets())}")
    return base


def _resolved(content: dict[str, Any], file: str) -> dict[str, Any]:
    """`content` over the preset that it extends."""
    base = _base_of(content, file)
    own = {key: value for key, value in content.items() if key != "extends"}
    return own if base is None else _merged(_resolved(_toml(_preset(base), f"{base}.toml"), f"{base}.toml"), own)


def _digest(data: bytes, file: str) -> str:
    """sha256 over the file and, after it, each preset that it stands on."""
    digest = hashlib.sha256(data)
    while base := _base_of(_toml(data, file), file):
        data, file = _preset(base), f"{base}.toml"
        digest.update(data)
    return digest.hexdigest()


def _checked(content: dict[str, Any], sha256: str, file: str) -> Policy:
    try:
        checked = PolicyFile.model_validate(content)
    except ValidationError as error:
        raise PolicyError(f"{file}: {_first(error)}", _REMEDY) from error
    return Policy(**dict(checked), sha256=sha256)


def _toml(data: bytes, file: str) -> dict[str, Any]:
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise PolicyError(f"{file} is not valid TOML: {_one_line(error)}", _REMEDY) from error


def _merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`own` over `base`: tables key by key, `detectors` and `rules` by name; all else is replaced."""
    out = dict(base)
    for key, value in own.items():
        old = base.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            out[key] = _merged(old, value)
        elif key in _BY and isinstance(value, list) and isinstance(old, list):
            named = {row.get(_BY[key]) for row in value if isinstance(row, dict)}
            out[key] = [row for row in old if row[_BY[key]] not in named] + value
        else:
            out[key] = value
    return out


def _presets() -> Any:
    return files("platemark.safety").joinpath("presets")


def _preset(name: str) -> bytes:
    data: bytes = _presets().joinpath(f"{name}.toml").read_bytes()
    return data


def _first(error: ValidationError) -> str:
    """The first complaint as `key: what is wrong`, an unknown key before all others."""
    found: list[Any] = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in found[0]["loc"]) or "policy"
    if found[0]["type"] == "extra_forbidden":
        return f"unknown key '{key}'"
    return f"{key}: {_one_line(found[0]['msg'].removeprefix('Value error, '))}"


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
