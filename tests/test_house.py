"""The floor plan: which wing may import which, no circles, torch's private names in one file."""

import ast
import re
from pathlib import Path

import pytest

import sparsedrop

PACKAGE = Path(sparsedrop.__file__).parent

# What each wing imports of the others. A wing is a module or folder at the top of the package.
MAY_IMPORT = {
    "_torch": set(),
    "reference": set(),
    "_native": {"_torch"},
    "masks": {"_torch", "_native"},
    "select": {"_native"},
    "ops": {"_torch", "_native", "masks", "select"},
    "operands": {"_native", "masks", "ops"},
    "functional": {"_native", "masks", "ops", "operands"},
    "nn": {"masks", "ops", "functional"},
    "__init__": {"reference", "masks", "select", "functional", "nn"},
    "tools": {"reference", "_native", "masks", "select", "ops", "operands", "functional", "nn"},
    "__main__": {"tools"},
}

MOST_LINES, MOST_LINES_OF_A_FUNCTION = 300, 60


def _modules():
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
    }


def _imports(path, modules):
    """Names of the package's modules that a file imports, whichever way; packages by __init__."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "sparsedrop":
                inner = ".".join(parts[1:])
                found |= {inner, f"{inner}.__init__".removeprefix(".")} & modules.keys()
    # `from package import module` is an import of the module; the package itself comes with it.
    return found


def test_every_import_goes_to_a_wing_that_may_be_imported():
    modules = _modules()
    wings = {name.split(".")[0] for name in modules}
    assert wings == MAY_IMPORT.keys()
    for name, path in modules.items():
        wing = name.split(".")[0]
        others = {other.split(".")[0] for other in _imports(path, modules)} - {wing, "__init__"}
        if wing == "tools":  # `import sparsedrop`, as a user writes it
            others -= {"__init__"}
        assert others <= MAY_IMPORT[wing], f"{name} imports {others - MAY_IMPORT[wing]}"


def test_there_is_no_circle():
    """Among modules: a package's __init__ counts as what its own modules do not import."""
    modules = _modules()
    graph = {
        name: {
            other
            for other in _imports(path, modules)
            # Whoever imports a module of a package runs its __init__, also within the package.
            if not (other.endswith("__init__") and _folder(name).startswith(_folder(other)))
        }
        for name, path in modules.items()
    }
    done: set[str] = set()

    def visit(name, trail):
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for other in graph[name]:
                visit(other, [*trail, name])
            done.add(name)

    for name in graph:
        visit(name, [])


def _folder(name):
    return name.rpartition(".")[0]


def test_private_names_of_torch_are_in_one_file():
    private = re.compile(r"torch(\.\w+)*\._[a-zA-Z]|forward_ad|_are_functorch|from torch\._")
    for name, path in _modules().items():
        if name != "_torch":
            code = "\n".join(line.partition("#")[0] for line in path.read_text().splitlines())
            assert not private.search(code), f"{name}: {private.search(code)[0]}"


@pytest.mark.parametrize("path", sorted(_modules().values()), ids=lambda path: path.name)
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body
            is_documented = ast.get_docstring(node) is not None
            first = body[1] if is_documented and len(body) > 1 else body[0]
            lines = node.end_lineno - first.lineno + 1
            assert lines <= MOST_LINES_OF_A_FUNCTION, f"{node.name} has {lines} lines"
