"""The frame holds: import arrows, listed packages, laziness, size of the tree, files free of forbidden things."""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"src/platemark": "platemark", "optimize": "platemark.optimize", "runtime": "platemark.runtime",
           "safety": "platemark.safety", "provenance": "platemark.provenance"}  # fmt: skip
ARROWS = {
    "runtime": {"optimize", "safety", "provenance", "press", "cli", "server", "models"},
    "safety": {"optimize", "provenance", "press", "cli", "server", "models"},
    "provenance": {"optimize", "safety", "press", "cli", "server", "models"},
    "optimize": {"press", "cli", "server", "models", "safety", "provenance"},
}
HEAVY = {"torch", "torchvision", "diffusers", "transformers", "open_clip", "fastapi", "ray"}
TORCH_ALLOWED = {"runtime/backends/torch.py", "runtime/backends/aotinductor.py"}


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("stage", sorted(ARROWS))
def test_arrows_never_point_back(stage: str) -> None:
    found = modules(stage)
    assert found
    for path in found:
        reached = {name.split(".")[1] for name in imports(path) if name.startswith("platemark.") and name.count(".") >= 1}
        assert not reached & ARROWS[stage], f"{path.relative_to(ROOT)} imports {sorted(reached & ARROWS[stage])}"


@pytest.mark.parametrize("stage", ["runtime", "safety", "provenance"])
def test_serving_stages_do_not_import_training_libraries(stage: str) -> None:
    for path in modules(stage):
        if path.relative_to(ROOT).as_posix() in TORCH_ALLOWED:
            continue
        assert not {name.split(".")[0] for name in imports(path)} & HEAVY, path


def test_only_named_modules_of_the_face_know_the_stages() -> None:
    layers = {"errors.py": set(), "pdq.py": {"errors"}, "encoding.py": {"errors"}, "imaging.py": {"errors", "pdq", "encoding"}}
    for name, allowed in layers.items():
        reached = {n.split(".")[1] for n in imports(ROOT / "src/platemark" / name) if n.startswith("platemark.")}
        assert reached <= allowed, (name, reached)


def test_every_package_folder_is_listed() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = set()
    for folder, package in FOLDERS.items():
        for marker in (ROOT / folder).rglob("__init__.py"):
            inside = marker.parent.relative_to(ROOT / folder).parts
            found.add(".".join((package, *inside)))
    assert found == listed


def test_import_and_lean_generate_path_load_no_training_library() -> None:
    code = (
        "import sys, platemark, platemark.press, platemark.provenance.verify, platemark.cli.generate\n"
        f"print(sorted(set(sys.modules) & {HEAVY!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_face_is_lazy_and_small() -> None:
    code = "import sys, platemark; print(sorted(m for m in sys.modules if m.startswith('platemark'))); print(sorted(dir(platemark)))"
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0] == "['platemark', 'platemark.errors']"
    assert lines[1] == "['Control', 'Press', 'Result', 'VerifyReport', 'Watch', '__version__', 'errors', 'load', 'verify']"


def git(*arguments: str, root: Path = ROOT) -> str:
    """What git says; skips the test where there is no git or `root` is no checkout (an unpacked archive, say)."""
    program = shutil.which("git")
    if program is None or not (root / ".git").exists():
        pytest.skip("needs git and a checkout")
    done = subprocess.run([program, *arguments], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"git cannot read this checkout: {done.stderr.strip()[:100]}")
    return done.stdout


def tracked() -> list[Path]:
    return [ROOT / name for name in git("ls-files", "-z").split("\0") if name]


def test_outside_of_a_checkout_the_tree_tests_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(pytest.skip.Exception, match="checkout"):
        git("ls-files", root=tmp_path)
    (tmp_path / ".git").write_text("gitdir: nowhere")
    with pytest.raises(pytest.skip.Exception):
        git("ls-files", root=tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match="needs git"):
        git("ls-files")


def test_the_tracked_tree_stays_small() -> None:
    assert sum(path.stat().st_size for path in tracked() if path.is_file()) < 55 * 2**20


def test_no_pickles_and_no_shell() -> None:
    for path in tracked():
        assert path.suffix not in {".bin", ".pt", ".pth", ".ckpt", ".pkl"}, path
        if path.suffix == ".py" and path.is_file():
            calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
            for call in calls:
                assert not any(k.arg == "shell" and getattr(k.value, "value", None) is True for k in call.keywords), path


def test_the_readme_check_walks_the_whole_command_tree() -> None:
    spec = importlib.util.spec_from_file_location("readme_tool", ROOT / "tools" / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    every = tool.missing("no blocks here")
    assert {"", "generate", "keys", "keys init", "keys show", "keys export", "keys import"} <= set(every)
    text = "".join(f"<!-- help: {command} -->\n<!-- /help -->\n" for command in every if command not in ("verify", "keys import"))
    assert tool.missing(text) == ["verify", "keys import"]
    assert "Usage: platemark keys init" in tool.render("<!-- help: keys init -->\nold\n<!-- /help -->")


def test_every_error_has_code_remedy_and_place_in_the_drawing() -> None:
    from platemark import errors

    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.PlatemarkError)]
    drawn = set(re.findall(r"^[│├└─ ]*([A-Z]\w+)", errors.__doc__ or "", re.MULTILINE)) & set(vars(errors))
    assert drawn == {cls.__name__ for cls in classes}
    for cls in classes:
        error = cls("what", "build") if cls is errors.MissingExtra else cls("what", "remedy")
        assert set(error.as_dict()) == {"code", "message", "remedy"}
        assert error.exit_code in {1, 2, 3, 4, 5}
    assert len({cls.code for cls in classes}) == len(classes)
