"""The arrows stay one-way, libraries stay in their homes, declaring stays light, and nothing tracked is ignored."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "data": {"data"},
    "model": {"data", "model"},
    "orchestrator": {"data", "model", "orchestrator"},
    "experiments": {"data", "model", "orchestrator", "experiments"},
    "benchmarks": {"data", "model", "orchestrator", "benchmarks"},
}
HOMES = {
    "openai": ("data/annotate.py",),
    "whisper": ("model/encoder.py", "model/whisper_weights.py"),
    "peft": ("model/speech_llm.py", "benchmarks/training_models.py"),  # the second builds the loop we are compared with
    "deepspeed": ("model/train.py", "model/checkpoints.py"),
    "xgrammar": ("model/constrained.py",),
    "ray": ("orchestrator/",),
    "mlflow": ("orchestrator/",),
}
HEAVY = {"torch", "ray", "mlflow", "deepspeed", "peft", "openai", "transformers", "whisper"}
MODULES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def _imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_follow_the_arrows_and_stay_at_home(path: Path) -> None:
    relative = path.relative_to(ROOT).as_posix()
    allowed = MAY_IMPORT[path.relative_to(ROOT).parts[0]]
    for name in _imported(path):
        package = name.split(".")[0]
        assert package not in MAY_IMPORT or package in allowed, f"{relative} imports {name}, against the arrows"
        assert package not in HOMES or relative.startswith(HOMES[package]), (
            f"{relative} imports {name}, away from its home"
        )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_modules_say_what_they_are_and_stay_readable(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), f"{path}: no docstring"
    assert len(text.splitlines()) <= 350, f"{path}: longer than 350 lines; is it one room or two?"
    if path.name == "__init__.py":
        assert len(tree.body) == 1, f"{path}: more than a docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 80, f"{path}: {node.name} has {length} lines"


def test_declaring_the_grid_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import experiments.grid; "
        f"print(sorted({HEAVY!r} & {{name.split('.')[0] for name in sys.modules}}))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(ROOT)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_tracked_file_is_ignored() -> None:
    """A `.gitignore` line like `data/` would drop the package on Ray's workers, which honour it."""
    ignored = subprocess.run(
        ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if ignored.returncode:
        pytest.skip("not a git checkout")
    assert ignored.stdout == ""
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    assert not {line.strip("/") for line in lines} & {*MAY_IMPORT, "tests"}


def test_every_package_is_listed_for_installation() -> None:
    import tomllib

    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"])
    found = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for package in MAY_IMPORT.keys() - {"benchmarks"}  # they are run from a checkout
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert found == listed
