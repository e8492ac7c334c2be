"""Which modules a file imports, read from its source: for the tests of floors and of declared dependencies."""

import ast
from collections.abc import Iterator
from pathlib import Path

from places import REPOSITORY

PACKAGE = "xlstm_unet_lab"
OURS = {PACKAGE, "data_recipes", "benchmarks", "tests"}


def python_files(*folders: str, root: Path = REPOSITORY) -> list[Path]:
    return sorted(path for folder in folders for path in (root / folder).rglob("*.py"))


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def imported_modules(path: Path, root: Path = REPOSITORY) -> Iterator[tuple[int, str]]:
    """Yield (line, module) for every import of a file, also inside functions and by `import_module("...")`."""
    package = module_name(path, root).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                # `from package import name`: the name is a module of its own or something that the package holds.
                whole = f"{source}.{alias.name}"
                location = root.joinpath(*whole.split("."))
                is_module = location.is_dir() or location.with_suffix(".py").is_file()
                yield node.lineno, whole if is_module else source
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value
