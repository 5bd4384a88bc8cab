"""From a bundle's component and a backend's name to an engine: through the user's cache where the backend's engines are worth keeping.

An engine that is compiled anew is compared with the portable one before it is used. Knows no engine library and no pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

from platemark.errors import InputError
from platemark.runtime import backends, devices, enginecache
from platemark.runtime.bundle import Bundle
from platemark.runtime.engine import Array, Engine
from platemark.runtime.enginecache import EngineCache, EngineKey, Entry
from platemark.runtime.manifest import BuiltEngine
from platemark.runtime.parity import Recorded, check, probes

PORTABLE = "onnxruntime"
GIVEN = frozenset({"upscaler"})  # components whose graphs no build exported
Weights = Mapping[str, Mapping[str, Array]]  # component → stored weight → its values instead, in its stored type (bfloat16 as uint16)


@dataclass(frozen=True)
class EngineState:
    """One engine of a bundle, as `inspect` shows it: whether it can be used here, and in words why or why not."""

    component: str
    backend: str
    precision: str
    device: str
    usable: bool
    why: str

    def as_dict(self) -> dict[str, str | bool]:
        return asdict(self)


def runnable(backend: str) -> ModuleType:
    """The backend's module. Raises `InputError` for an unknown one, and for one that runs no graphs."""
    module = backends.find(backend)
    if not hasattr(module, "compile_graph"):
        raise InputError(f"the backend {backend!r} renders no pictures here: it is a reference, or builds plans only", "use 'onnxruntime'")
    return module


def opener(
    bundle: Bundle, backend: str | None = None, *, cache: Path | None = None, threads: int | None = None, weights: Weights | None = None
) -> Callable[[Path], Engine]:
    """What compiles the graph at a path of the bundle, as `open_engine`: on one backend, or each component on the one that the bundle
    names for it. A graph that a user brought is computed by the portable backend, with which it was compared.

    Raises `InputError` for a backend that cannot.
    """
    manifest = bundle.manifest
    chosen = {name: backend or manifest.backends.get(name, manifest.default_backend) for name in manifest.components}
    chosen |= {name: PORTABLE for name in chosen if name in GIVEN}
    for one in {backend or manifest.default_backend, *chosen.values()}:
        runnable(one)
    components = {bundle.file(part.graph): name for name, part in manifest.components.items()}

    def opens(path: Path) -> Engine:
        name = components[path]
        return open_engine(bundle, name, chosen[name], cache=cache, threads=threads, replaced=(weights or {}).get(name))

    return opens


def open_engine(
    bundle: Bundle,
    component: str,
    backend: str,
    *,
    cache: Path | None = None,
    threads: int | None = None,
    replaced: Mapping[str, Array] | None = None,
) -> Engine:
    """The component's engine on a backend: found in the cache folder, or compiled, compared with the portable engine, and kept there.

    Without `cache` it is compiled each time; with `replaced` weights too, which no engine in a cache has. Raises `BundleError`,
    `EngineError`, `ParityError`, `InputError` and `MissingExtra`.
    """
    module = runnable(backend)
    path = bundle.file(bundle.component(component).graph)
    changes = {"replaced": replaced} if replaced else {}
    if not hasattr(module, "load_blob"):
        engine: Engine = module.compile_graph(path, threads=threads, **changes)
        return engine
    precision = recorded_precision(bundle, component, backend)
    if cache is None or replaced:
        compiled: Engine = module.compile_graph(path, threads=threads, precision=precision, **changes)
        return compiled
    key = key_for(bundle, component, backend, precision)

    def load(blob: bytes) -> Engine:
        loaded: Engine = module.load_blob(path.name, blob, threads=threads, precision=precision)
        return loaded

    def make() -> tuple[Entry, Engine]:
        made = module.compile_graph(path, threads=threads, precision=precision)
        parity = compare_with_portable(bundle, component, made, module.label(), precision, threads)
        return Entry(key, made.blob(), parity), made

    found: Engine = enginecache.get_or_make(EngineCache(cache), key, load, make)
    return found


def recorded_precision(bundle: Bundle, component: str, backend: str) -> str:
    """The precision that the build proved for this component on this backend; fp32 where it proved none."""
    found = [e.precision for e in bundle.manifest.engines if (e.component, e.backend, e.state) == (component, backend, "compared")]
    return found[0] if found else "fp32"


def key_for(bundle: Bundle, component: str, backend: str, precision: str) -> EngineKey:
    """The device key of a component compiled here, now. Raises `MissingExtra`."""
    module = backends.find(backend)
    return EngineKey(
        graph=bundle.manifest.files[bundle.component(component).graph],
        weights=bundle.component_weights_sha256(component),
        backend=backend,
        version=module.version(),
        precision=precision,
        device=module.device(),
    )


def compare_with_portable(
    bundle: Bundle, component: str, engine: Engine, label: str, precision: str, threads: int | None
) -> dict[str, object]:
    """The parity record (JSON types) of an engine against the bundle's graph in ONNX Runtime, which the build compared with torch.

    Raises `ParityError`.
    """
    portable = backends.find(PORTABLE)
    reference: Engine = portable.compile_graph(bundle.file(bundle.component(component).graph), threads=threads)
    recorded = [Recorded(inputs, reference.run(inputs)) for inputs in probes(reference, _dims(bundle, component))]
    record: dict[str, object] = check(component, recorded, engine, (portable.label(), label), precision).model_dump(mode="json")
    return record


def _dims(bundle: Bundle, component: str) -> Mapping[str, int]:
    """The sizes that the free dims have in use: a pair (with and without the prompt) at the native size."""
    manifest = bundle.manifest
    scale = 1 if component == "vae_encoder" else manifest.vae_scale_factor
    height, width = (pixels // scale for pixels in manifest.native_size)
    return {"batch": 2, "tokens": manifest.max_tokens, "height": height, "width": width}


def states(bundle: Bundle, cache: Path | None) -> list[EngineState]:
    """Every engine beyond the portable ones that the bundle records, and whether it can be used on this machine. Compiles nothing."""
    return [_state(bundle, engine, cache) for engine in bundle.manifest.engines]


def _state(bundle: Bundle, engine: BuiltEngine, cache: Path | None) -> EngineState:
    usable, why = _plan_state(engine) if engine.file is not None else _cached_state(bundle, engine, cache)
    return EngineState(engine.component, engine.backend, engine.precision, engine.device, usable, why)


def _cached_state(bundle: Bundle, engine: BuiltEngine, cache: Path | None) -> tuple[bool, str]:
    try:
        module = runnable(engine.backend)
        module.check_precision(engine.precision)
        key = key_for(bundle, engine.component, engine.backend, engine.precision)
    except InputError as error:
        return False, f"{error.message}: {error.remedy}"
    note = "" if (engine.version, engine.device) == (key.version, key.device) else f"; built with {engine.version} on {engine.device}"
    return True, enginecache.state(EngineCache(cache), key) + note if cache is not None else f"compiled at each use{note}"


def _plan_state(engine: BuiltEngine) -> tuple[bool, str]:
    targets = engine.device.split()
    built = f"plan built for {', '.join(map(devices.spoken, targets))} with {engine.version}, never run"
    here = devices.gpu()
    if here is None:
        return False, f"{built}; this machine has no NVIDIA driver or GPU"
    if here.target not in targets:
        return False, f"{built}; this is {devices.spoken(here.target)}: build with --target {here.target}"
    return False, f"{built}; this version of Platemark builds plans and does not run them"
