"""The layout of the house, read from the syntax tree: layers, cycles, printing, packaging."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent

LEAVES = {"", "errors", "fields", "files", "out_of_memory", "plain_text", "units"}
"""What every layer may import; `""` is the package itself, for its version."""

BELOW = {
    "": {"config", "pipeline", "scoring", "errors"},  # lazily, for its public names
    "__main__": {"cli"},
    "errors": set(),
    "fields": set(),
    "files": set(),
    "out_of_memory": set(),
    "plain_text": set(),
    "units": set(),
    "timeline": {"video"},
    "kernels": set(),
    "presets": set(),
    "hub": set(),
    "ops.quant": set(),
    "ops": {"kernels", "ops.quant"},
    "memory": {"ops", "kernels"},
    "model": {"memory", "ops", "ops.quant"},
    "rollout": {"model", "memory", "ops"},
    "config": {"presets", "hub", "memory", "video"},
    "checkpoint": set(),
    "checkpoint.naming": set(),
    "checkpoint.formats": {"ops.quant"},
    "checkpoint.quant": {"checkpoint.formats", "checkpoint.naming", "ops.quant"},
    "checkpoint.networks": {
        "checkpoint.formats",
        "checkpoint.naming",
        "checkpoint.quant",
        "model",
        "ops.quant",
    },
    "checkpoint.lora": {
        "checkpoint.formats",
        "checkpoint.naming",
        "checkpoint.networks",
        "checkpoint.quant",
        "model",
        "ops.quant",
    },
    "checkpoint.identify": {"checkpoint.formats"},
    "checkpoint.convert": {
        "checkpoint.formats",
        "checkpoint.identify",
        "checkpoint.naming",
        "checkpoint.networks",
        "checkpoint.quant",
        "model",
        "ops.quant",
    },
    "checkpoint.inspect": {
        "checkpoint.formats",
        "checkpoint.identify",
        "checkpoint.lora",
        "checkpoint.naming",
        "checkpoint.networks",
        "checkpoint.quant",
        "model",
        "ops.quant",
    },
    "video": set(),
    "metrics": {"video"},
    "runs": {"memory", "timeline", "video"},
    "parallel": {"memory", "model", "ops", "renderer", "rollout"},
    "renderer": {"memory", "model", "rollout", "runs", "timeline", "video"},
    "pipeline": {
        "checkpoint.formats",
        "checkpoint.identify",
        "checkpoint.inspect",
        "checkpoint.lora",
        "checkpoint.networks",
        "config",
        "hub",
        "memory",
        "model",
        "ops",
        "parallel",
        "renderer",
        "rollout",
        "runs",
        "timeline",
        "video",
    },
    "scoring": {"metrics", "pipeline", "runs", "timeline", "video"},
    "report": {"config", "pipeline", "runs", "scoring", "timeline", "video"},
    "bench": {
        "checkpoint.networks",
        "config",
        "memory",
        "model",
        "ops",
        "pipeline",
        "renderer",
        "rollout",
        "timeline",
    },
    "train": {
        "checkpoint.convert",
        "checkpoint.formats",
        "checkpoint.lora",
        "checkpoint.naming",
        "checkpoint.networks",
        "kernels",
        "memory",
        "metrics",
        "model",
        "ops",
        "rollout",
        "video",
    },
    "cli": {
        "bench",
        "checkpoint.convert",
        "checkpoint.identify",
        "checkpoint.inspect",
        "checkpoint.networks",
        "config",
        "hub",
        "kernels",
        "memory",
        "metrics",
        "parallel",
        "pipeline",
        "renderer",
        "report",
        "runs",
        "scoring",
        "timeline",
        "video",
    },
    "cli.train": {"train", "model", "checkpoint.networks", "config"},
}
"""The layers: each may import itself, the leaves and what is listed."""

AT_THE_ROOT = 8
"""Most modules at the root of the package."""

LIGHT = (
    "cfgen",
    "cfgen.errors",
    "cfgen.timeline",
    "cfgen.renderer.events",
    "cfgen.video.output",
    "cfgen.memory.compressed",
    "cfgen.memory.window",
    "cfgen.memory.recency",
    "cfgen.memory.relax",
    "cfgen.memory.slow_fast",
)
"""Modules that load without torch, besides those of config and cli."""

HEAVY = {
    "accelerate",
    "diffusers",
    "gguf",
    "huggingface_hub",
    "imageio_ffmpeg",
    "matplotlib",
    "ray",
    "sentencepiece",
    "transformers",
}
"""Libraries that are imported where they are used: most commands do without them."""

OPENING = {"open", "fdopen", "touch", "copy2", "copyfile", "mkstemp"}
OPENING |= {"write_text", "write_bytes", "read_text", "read_bytes", "savefig"}
OPENING |= {"NamedTemporaryFile", "save_file", "load_file", "memmap", "from_file", "tofile"}
"""Calls that open a file, by the last part of their name."""

OPENERS = {
    "cfgen.files.writing": {"io.open", "os.open"},
    "cfgen.files.reading": {"os.open", "os.fdopen"},
    "cfgen.checkpoint.formats.gguf": {"np.memmap"},  # of a file that is open
    "cfgen.checkpoint.inspect.inspect": {"kind.open"},  # a network's
    "cfgen.cli.streams": {"os.open"},  # the null device
    "cfgen.runs.lock": {
        "Path('/proc/sys/kernel/random/boot_id').read_text",
    },
    "cfgen.train.plot": {"figure.savefig"},  # into memory
    "cfgen.video.contact_sheet": {"PIL.Image.open"},  # of bytes
    "cfgen.video.pictures": {"PIL.Image.open"},  # likewise
}
"""Where files are opened, and what else of the same name is called: nothing else opens one."""

HANDED_ON = {
    ("cfgen.renderer.batch", "Exception"),  # one clip's failure; `_failed` tells them apart
    ("cfgen.model.tokenizer", "BaseException"),  # from a thread; `numbers_of` tells them apart
}
"""What is caught to be told apart elsewhere."""

PRINTING = {("typer", "echo"), ("typer", "secho"), ("sys", "stdout"), ("sys", "stderr")}


def _modules() -> dict[str, Path]:
    homes = {"cfgen": ROOT / "cfgen", "cfgen.kernels": ROOT / "kernels"}
    found = {}
    for name, home in homes.items():
        for path in sorted(home.rglob("*.py")):
            parts = path.relative_to(home).with_suffix("").parts
            tail = [part for part in parts if part != "__init__"]
            found[".".join([name, *tail])] = path
    return found


MODULES = _modules()


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def _named(node: ast.AST) -> Iterator[str]:
    """The modules that an import statement names."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            yield inner if inner in MODULES else node.module


def _imports(module: str) -> set[str]:
    return {name for node in ast.walk(_tree(module)) for name in _named(node)}


def _imports_at_load(module: str) -> set[str]:
    """Imports that run when the module is imported: none in functions or under TYPE_CHECKING."""
    found: set[str] = set()
    waiting: list[ast.AST] = list(_tree(module).body)
    while waiting:
        node = waiting.pop()
        checking = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or checking:
            continue
        found |= set(_named(node))
        waiting += ast.iter_child_nodes(node)
    return found


def _layer(module: str) -> str:
    tail = module.split(".")[1:]
    if ".".join(tail[:2]) in BELOW:
        return ".".join(tail[:2])
    return tail[0] if tail else ""


def test_modules_were_found() -> None:
    assert {"cfgen.errors", "cfgen.cli.app", "cfgen.config.loader", "cfgen.kernels"} <= set(MODULES)


def test_imports_go_down_only() -> None:
    for module in MODULES:
        layer = _layer(module)
        assert layer in BELOW, f"{module} is in no layer"
        allowed = BELOW[layer] | LEAVES | {layer, layer.split(".")[0]}
        for name in _imports(module):
            if name.split(".")[0] == "cfgen":
                assert _layer(name) in allowed, f"{module} imports {name}"


def test_no_relative_imports() -> None:
    for module in MODULES:
        found = [n for n in ast.walk(_tree(module)) if isinstance(n, ast.ImportFrom) and n.level]
        assert not found, module


def _circle(graph: dict[str, set[str]]) -> list[str]:
    """What is left of a graph when all that leads into no circle is taken away."""
    left = {name: needs - {name} for name, needs in graph.items()}
    while ready := [name for name, needs in left.items() if not needs & set(left)]:
        for name in ready:
            del left[name]
    return sorted(left)


def test_no_module_imports_itself_by_others_within_functions_either() -> None:
    assert _circle({name: _imports(name) & set(MODULES) for name in MODULES}) == []


def test_no_room_imports_itself_by_others() -> None:
    rooms: dict[str, set[str]] = {}
    for name in MODULES:
        rooms.setdefault(_layer(name), set()).update(
            _layer(target) for target in _imports(name) & set(MODULES)
        )
    rooms.pop("")  # the public names: imported when they are asked for
    assert _circle({room: needs - {""} for room, needs in rooms.items()}) == []


def test_what_a_policy_is_stands_in_its_room_alone() -> None:
    """Nobody else tells policies apart, by class or by name: they ask the policy."""
    classes = {"FullMemory", "WindowMemory", "SlowFastMemory"}
    for module in MODULES:
        if _layer(module) == "memory":
            continue
        for node in ast.walk(_tree(module)):
            told: set[str] = set()
            if isinstance(node, ast.MatchClass):
                told = {ast.unparse(node.cls).rpartition(".")[2]} & classes
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
                told = set(re.findall(r"\w+", ast.unparse(node.args[1]))) & classes
            elif isinstance(node, ast.Compare):
                told = set(re.findall(r"\bmemory\.(?:policy|variant)\b", ast.unparse(node)))
            assert not told, f"{module}:{node.lineno} asks for {told}"


def test_few_modules_stand_at_the_root() -> None:
    assert len(list((ROOT / "cfgen").glob("*.py"))) <= AT_THE_ROOT


def test_only_the_console_prints() -> None:
    for module in set(MODULES) - {"cfgen.cli.console", "cfgen.cli.streams"}:
        for node in ast.walk(_tree(module)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "print", f"{module}:{node.lineno}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in PRINTING, f"{module}:{node.lineno}"
        uses_rich = any(name.split(".")[0] == "rich" for name in _imports(module))
        # The one draws with it, the other measures.
        assert not uses_rich or module in {"cfgen.cli.progress_bar", "cfgen.plain_text"}, module


def test_files_are_opened_in_one_place() -> None:
    found: dict[str, set[str]] = {}
    for module in MODULES:
        for node in ast.walk(_tree(module)):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            ours = isinstance(node.func, ast.Name) and name in ("read_text", "read_bytes")
            if name.rpartition(".")[2] in OPENING and not ours:
                found.setdefault(module, set()).add(name)
    assert found == OPENERS


def test_only_the_train_command_imports_train() -> None:
    importers = {
        name
        for name in MODULES
        if any(target.startswith("cfgen.train") for target in _imports(name))
        and not name.startswith("cfgen.train")
    }
    assert importers <= {"cfgen.cli.train"}


def test_nothing_imports_click() -> None:
    for module in MODULES:
        names = {
            f"{getattr(node, 'module', '')}.{alias.name}"
            for node in ast.walk(_tree(module))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        assert not [name for name in names if re.search(r"(^|\.)_?click\b", name)], module


def test_kernels_import_torch_and_triton_only() -> None:
    for module in MODULES:
        if module.startswith("cfgen.kernels"):
            tops = {name.split(".")[0] for name in _imports(module)}
            assert tops <= {"torch", "triton", "cfgen"} | sys.stdlib_module_names


def _run(code: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_command_line_and_config_load_without_torch(tmp_path: Path) -> None:
    light = [
        name
        for name in MODULES
        if name in LIGHT or (name + ".").startswith(("cfgen.config.", "cfgen.cli."))
    ]
    heavy = "('torch', 'numpy', 'transformers', 'diffusers', 'rich', 'ffmpeg', 'matplotlib')"
    code = (
        f"import sys\nfor name in {light!r}: __import__(name)\n"
        f"sys.stdout.write(str([name for name in {heavy} if name in sys.modules]))"
    )
    assert _run(code, tmp_path) == "[]"


def test_heavy_libraries_are_imported_where_they_are_used() -> None:
    for module in MODULES:
        if not module.startswith("cfgen.train."):
            found = HEAVY & {name.split(".")[0] for name in _imports_at_load(module)}
            assert not found, module


def test_rendering_loads_without_the_training_part(tmp_path: Path) -> None:
    used = [
        name
        for name in MODULES
        if name.startswith(("cfgen.renderer", "cfgen.pipeline", "cfgen.cli"))
        and name != "cfgen.cli.train"
    ]
    code = (
        "import sys\n"
        "class NoTraining:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.startswith('cfgen.train'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, NoTraining())\n"
        f"for name in {used!r}: __import__(name)\n"
        "sys.stdout.write('loaded')"
    )
    assert _run(code, tmp_path) == "loaded"


def test_top_level_kernels_and_presets_are_not_ours(tmp_path: Path) -> None:
    code = (
        "import importlib.util as u, sys, cfgen.kernels, cfgen.presets\n"
        "specs = [u.find_spec(name) for name in ('kernels', 'presets')]\n"
        "sys.stdout.write(repr([s.origin for s in specs if s]))"
    )
    origins = ast.literal_eval(_run(code, tmp_path))
    assert not [origin for origin in origins if origin and Path(origin).is_relative_to(ROOT)]


def test_packages_in_pyproject_are_the_folders_there_are() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = set(project["tool"]["setuptools"]["packages"])
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "cfgen").rglob("__init__.py")
    }
    assert folders | {"cfgen.kernels", "cfgen.presets"} == listed


def test_version_is_told_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    import cfgen

    assert project["project"]["version"] == cfgen.__version__


def test_public_names_are_there() -> None:
    import cfgen

    for name in ("render", "resume", "RenderConfig", "RenderJob", "CfgenError"):
        assert name in cfgen.__all__
        assert getattr(cfgen, name).__name__ == name


def test_every_error_has_an_exit_code_and_a_code_of_its_own() -> None:
    from cfgen import errors

    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, Exception)]
    codes = [c.code for c in classes]
    assert len(set(codes)) == len(codes)
    assert {c.exit_code for c in classes} <= {1, 2, 3, 130}
    assert all(c.__name__ in (errors.__doc__ or "") for c in classes)


def test_what_takes_every_exception_lets_signals_and_exhausted_memory_pass() -> None:
    """A damaged file is not to blame for a signal, for memory that ran out or for a defect."""
    for module in MODULES:
        for node in ast.walk(_tree(module)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = "BaseException" if node.type is None else ast.unparse(node.type)
            if not re.search(r"\b(Base)?Exception\b", caught):
                continue
            inside = [inner for statement in node.body for inner in ast.walk(statement)]
            again = any(isinstance(each, ast.Raise) and each.exc is None for each in inside)
            kept = (module, caught) in HANDED_ON
            assert again or kept, f"{module}:{node.lineno} must raise again what is not its own"
