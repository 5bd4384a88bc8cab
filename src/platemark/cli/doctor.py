"""`platemark doctor`: what this machine has, which backends can run, and what to install for the rest."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from typing import Any

import click

from platemark import __version__
from platemark.cli.output import emit, json_option, say
from platemark.runtime.devices import cpu_extensions

# backend → (importable module, distribution, pip command)
_BACKENDS = {
    "onnxruntime": ("onnxruntime", "onnxruntime", "pip install -c constraints.txt ."),
    "openvino": ("openvino", "openvino", 'pip install -c constraints.txt ".[openvino]"'),
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_cu12", 'pip install -c constraints.txt ".[tensorrt-rtx]"'),
    "tensorrt": ("tensorrt", "tensorrt_cu12", 'pip install -c constraints.txt ".[tensorrt]"'),
    "torch": ("torch", "torch", 'pip install -c constraints.txt ".[build]"'),
}
_TOOLS = {
    "build": (("torch", "diffusers", "transformers", "onnx", "onnxscript", "open_clip"), 'pip install -c constraints.txt ".[build]"'),
}


@click.command("doctor")
@json_option
def command(as_json: bool) -> int:
    """Show which backends run here, and what to install for the rest."""
    report = examine()
    if as_json:
        emit(report)
        return 0
    machine = report["machine"]
    kind = ", ".join(machine["isa"]) or machine["machine"]
    say(f"platemark {report['platemark']}, Python {machine['python']}, {machine['system']}, {machine['cores']} cores ({kind})")
    for name, backend in report["backends"].items():
        say(
            f"  {name:12} "
            + (
                f"ready, {backend['version']} ({', '.join(backend['providers'])})"
                if backend["usable"]
                else f"missing: {backend['install']}"
            )
        )
    for name, extra in report["extras"].items():
        say(f"  extra {name:6} " + ("ready" if not extra["missing"] else f"missing {', '.join(extra['missing'])}: {extra['install']}"))
    state = report["state"]
    say(f"  state        {state['home']} ({state['identity']})")
    return 0


def examine() -> dict[str, Any]:
    """The report as plain JSON types; imports no engine library but ONNX Runtime."""
    return {
        "platemark": __version__,
        "machine": {
            "python": platform.python_version(),
            "system": platform.system(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "isa": list(cpu_extensions()),
        },
        "backends": {name: _backend(*row) for name, row in _BACKENDS.items()},
        "extras": {
            name: {"missing": [m for m in modules if importlib.util.find_spec(m) is None], "install": install}
            for name, (modules, install) in _TOOLS.items()
        },
        "state": _state(),
    }


def _backend(module: str, distribution: str, install: str) -> dict[str, Any]:
    missing: dict[str, Any] = {"usable": False, "version": None, "providers": [], "install": install}
    if importlib.util.find_spec(module) is None:
        return missing
    providers = ["cpu"]
    try:
        if module == "onnxruntime":
            import onnxruntime  # type: ignore[import-untyped]

            providers = [name.removesuffix("ExecutionProvider").lower() for name in onnxruntime.get_available_providers()]
        version = importlib.metadata.version(distribution)
    except ImportError as error:  # also PackageNotFoundError: installed under another name (onnxruntime-gpu), or broken
        if isinstance(error, importlib.metadata.PackageNotFoundError):
            return {"usable": True, "version": "of another distribution", "providers": providers, "install": install}
        return missing | {"install": f"{install} (installed, but it does not import: {' '.join(str(error).split())[:120]})"}
    return {"usable": True, "version": version, "providers": providers, "install": install}


def _state() -> dict[str, str]:
    from platemark.errors import PlatemarkError
    from platemark.provenance.home import home
    from platemark.provenance.identity import describe

    try:
        return {"home": str(home()), "identity": describe(home())}
    except PlatemarkError as error:
        return {"home": str(home()), "identity": error.message}
