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
    "sharded": {"_native", "masks", "ops"},
    "functional": {"_native", "masks", "ops", "operands", "sharded"},
    "slice_out": {"_torch", "masks", "ops", "operands"},
    "nn": {"_torch", "masks", "ops", "operands", "functional", "slice_out"},
    "schedules": {"masks"},
    "patterns": {"masks"},
    "capturing": {"_torch", "masks"},
    "conversion": {
        "_torch",
        "masks",
        "select",
        "ops",
        "operands",
        "sharded",
        "functional",
        "slice_out",
        "nn",
    },
    "__init__": {
        "reference",
        "masks",
        "select",
        "functional",
        "nn",
        "conversion",
        "capturing",
        "schedules",
        "patterns",
        "slice_out",
    },
    # The command is a user of the whole package.
    "tools": {"__init__", "reference", "_native", "masks", "select", "ops", "operands", "nn"},
    "__main__": {"tools"},
}

MAX_LINES, MAX_LINES_OF_A_FUNCTION = 300, 60


def _modules():
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
    }


def _imports(path, modules):
    """The package's modules that a file imports, whichever way; packages are their __init__.

    The root is imported by `import sparsedrop`, and by a name from it that is not a module: what
    `from sparsedrop import select` needs of it, every import has run already.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        names = [name for name in names if name != "sparsedrop._C"]  # the extension's types
        inner = [name.partition(".")[2] for name in names if name.split(".")[0] == "sparsedrop"]
        targets = {x for name in inner for x in (name, f"{name}.__init__")} & modules.keys()
        # Names of the root that are not modules, or the root itself
        is_import = isinstance(node, ast.Import)
        if names[0] == "sparsedrop" and (is_import or len(targets) < len(names) - 1):
            found.add("__init__")
        found |= targets
    return found


def test_every_import_goes_to_a_wing_that_may_be_imported():
    modules = _modules()
    wings = {name.split(".")[0] for name in modules}
    assert wings == MAY_IMPORT.keys()
    for name, path in modules.items():
        wing = name.split(".")[0]
        others = {other.split(".")[0] for other in _imports(path, modules)} - {wing}
        assert others <= MAY_IMPORT[wing], f"{name} imports {others - MAY_IMPORT[wing]}"


def test_there_is_no_circle():
    """Among modules: a package's __init__ counts as what its own modules do not import."""
    modules = _modules()
    graph = {
        name: {
            other
            for other in _imports(path, modules)
            # Whoever imports a module of a package runs its __init__, also within the package.
            if not (other.endswith(".__init__") and _is_within(name, _folder(other)))
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


def _is_within(name, folder):
    return name.startswith(f"{folder}.")


def test_private_names_of_torch_are_in_one_file():
    private = re.compile(r"torch(\.\w+)*\._[a-zA-Z]|forward_ad|_are_functorch|from torch\._")
    for name, path in _modules().items():
        if name != "_torch":
            code = "\n".join(line.partition("#")[0] for line in path.read_text().splitlines())
            assert not private.search(code), f"{name}: {private.search(code)[0]}"


TESTS = sorted(Path(__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", [*sorted(_modules().values()), *TESTS], ids=lambda path: path.name)
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body
            is_documented = ast.get_docstring(node) is not None
            first = body[1] if is_documented and len(body) > 1 else body[0]
            lines = node.end_lineno - first.lineno + 1
            assert lines <= MAX_LINES_OF_A_FUNCTION, f"{node.name} has {lines} lines"
