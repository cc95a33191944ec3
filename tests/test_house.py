"""The rules of the house, read from the source: floors, the one saddle step, file sizes, light imports, docstrings."""

import ast
import inspect
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import pdopt

ROOT = Path(pdopt.__file__).parent
FILES = sorted(p for p in ROOT.rglob("*.py"))

# Design, section 3. A module may import from its own floor or from below; the package itself imports what it exports.
FLOORS = {
    "types": 0, "errors": 0,
    "runtime": 1, "geometry": 1, "operators": 1,
    "problems": 2,
    "rules": 3,
    "methods": 4, "models": 4,
    "solve": 5, "run": 5, "saving": 5, "reports": 5, "presolved": 5, "minimise": 5, "simulate": 5, "constrain": 5,
    "mending": 5, "confirm": 5, "match_online": 5, "matching_bounds": 5, "offline": 5,
    "divergence": 5, "barycenter": 5,
    "assign": 5, "bilevel": 5, "solve_many": 5,
    "training": 6,
    "cli": 7, "__main__": 7,
}  # fmt: skip


def module_name(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imports(tree, modules):
    """Modules of the package that a file imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the floor they go to"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            while name and name not in modules:
                name = name.rpartition(".")[0]
            if name:
                found.add(name)
    return found


def floor(module):
    parts = module.split(".")
    return None if len(parts) == 1 else FLOORS[parts[1]]


def upward(module, targets):
    """The imports of a module that climb: to a higher floor, or to the package itself, which stands on all of them."""
    own = floor(module)
    if own is None:
        return []
    return [t for t in sorted(targets) if floor(t) is None or floor(t) > own]


def cycle(graph):
    """A cycle of the graph as a list, or []."""
    done, path = set(), []

    def visit(node):
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        path.append(node)
        for after in sorted(graph.get(node, ())):
            if loop := visit(after):
                return loop
        path.pop()
        done.add(node)
        return []

    for node in sorted(graph):
        if loop := visit(node):
            return loop
    return []


def graph():
    trees = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}
    made = {name: imports(tree, MODULES) for name, tree in trees.items()}
    # A package's own __init__ may import from the modules below it; that is no cycle of ideas.
    return {name: {t for t in to if t != name} for name, to in made.items()}


def test_every_module_stands_on_a_floor():
    unknown = [name for name in MODULES if "." in name and name.split(".")[1] not in FLOORS]
    assert unknown == [], "give it a floor here and in the design"


def test_imports_point_down_or_sideways():
    # The command line, the top floor, may ask the package for its public names.
    wrong = {name: upward(name, to) for name, to in graph().items() if floor(name) != 7}
    assert {name: up for name, up in wrong.items() if up} == {}


def test_imports_have_no_cycle():
    assert cycle(graph()) == []


def test_the_floor_checks_can_fail():
    assert upward("pdopt.rules.saddle", {"pdopt.methods.pdhg", "pdopt.types"}) == ["pdopt.methods.pdhg"]
    assert upward("pdopt.problems.linear", {"pdopt"}) == ["pdopt"]
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    lazy = ast.parse("def f():\n    from pdopt.methods import pdhg\n    import pdopt.solve")
    assert imports(lazy, MODULES) == {"pdopt.methods.pdhg", "pdopt.solve"}


# --- the one step ---------------------------------------------------------------------------------------------------


def test_the_saddle_step_is_defined_once():
    defined = {
        name: [p for p in FILES if re.search(rf"^\s*def {name}\(", p.read_text(), re.M)]
        for name in ("saddle_step", "advance", "respond")
    }
    for name, places in defined.items():
        assert [p.relative_to(ROOT).as_posix() for p in places] == ["rules/saddle.py"], name


MULTIPLIERS = {"y", "dual", "lam", "mu", "multiplier", "multipliers"}
STEPS = {"saddle_step", "respond"}
# Calls that pick or make a multiplier without moving one: selection, a start at zero, the views' units, a T map.
CARRIERS = {
    "correct",
    "where",
    "zeros",
    "zeros_like",
    "start",
    "back",
    "into",
    "stop_gradient",
    "init",
    "best",
    "begin",
}


def callee(call):
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def multiplier_updates(source):
    """Lines in which a multiplier gets a value that no saddle step gave it.

    The criterion. A multiplier is the second field of a `Pair(...)`, a keyword `y=` of a call to `Pair` or `_replace`,
    or a local named y, dual, lam, mu, multiplier(s). What it is given must be *carried*: a name, attribute or item that
    is itself carried, a choice between two such, or the result of `saddle_step` or `respond` (or of a carrier: zeros, a
    selection, a view's change of units). A local name counts as carried only if everything assigned to it in the
    function is. Arithmetic or any other call is an update. So is calling a move (`.move(...)`, `move(...)`), which only
    `respond` does; handing a move to `row` or `Parts` is how methods are made. A private helper that computes
    `y + step v` under another name and returns it is caught where its result becomes a Pair. A method's `direction` is
    exempt: what it returns is a difference, judged as a ray and never fed back.
    """
    tree, found = ast.parse(source), set()
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name != "direction"]
    for function in functions:
        assigned: dict[str, list[ast.expr]] = {}
        for node in ast.walk(function):
            pairs = []
            if isinstance(node, ast.Assign):
                pairs = [(target, node.value) for target in node.targets]
            elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value is not None:
                pairs = [(node.target, node.value)]
            elif isinstance(node, ast.AugAssign):
                pairs = [(node.target, ast.BinOp(node.target, node.op, node.value, lineno=node.lineno))]
            for target, value in pairs:
                if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                    parts = list(zip(target.elts, value.elts))
                else:
                    parts = [(t, value) for t in getattr(target, "elts", [target])]
                for name, given in parts:
                    if isinstance(name, ast.Name):
                        assigned.setdefault(name.id, []).append(given)

        def carried(node, seen=frozenset()):
            if isinstance(node, ast.Name):
                if node.id in seen:
                    return True
                return all(carried(value, seen | {node.id}) for value in assigned.get(node.id, []))  # noqa: B023
            if isinstance(node, ast.Attribute | ast.Subscript | ast.Starred):
                return carried(node.value, seen)
            if isinstance(node, ast.IfExp):
                return carried(node.body, seen) and carried(node.orelse, seen)
            if isinstance(node, ast.Constant):
                return True
            if isinstance(node, ast.Call):
                if callee(node) in STEPS | CARRIERS or callee(node)[:1].isupper():  # a record built from other values
                    return True
                # Methods of the file itself that return a pair (`self._candidate`) are checked where they are written;
                # so is a step map `T(pair, memory)`, which can only be a saddle step's lambda.
                local = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
                return callee(node) in local or isinstance(node.func, ast.Call)
            return False

        for name in MULTIPLIERS & assigned.keys():
            found |= {value.lineno for value in assigned[name] if not carried(value)}
        for call in [n for n in ast.walk(function) if isinstance(n, ast.Call)]:
            if callee(call) in ("move", "climb"):
                found.add(call.lineno)
            given = [k.value for k in call.keywords if k.arg == "y"] if callee(call) in ("Pair", "_replace") else []
            if callee(call) == "Pair" and len(call.args) > 1:
                given.append(call.args[1])
            found |= {value.lineno for value in given if not carried(value)}
    return sorted(found)


@pytest.mark.parametrize(
    "line",
    [
        "return Pair(x, y + step * v)",
        "y = jnp.maximum(y + step * v, 0)",
        "y += step * v",
        "t = pair.y + step * v; return Pair(x, t)",
        "t = jnp.maximum(pair.y, 0); s = t; return Pair(x, s)",
        "return pair._replace(y=project(pair.y + v))",
        "return Pair(x, view.move(y, v, step))",
        "y = -y",
        "lam, other = lam + rho * h, 1",
    ],
)
def test_a_hidden_multiplier_update_is_found(line):
    assert multiplier_updates(f"def step(view, pair, x, y, v, step, rho, h):\n    {line}\n") == [2]


@pytest.mark.parametrize(
    "line",
    [
        "pair, memory = saddle_step(parts, step, pair); return pair",
        "y, memory = respond(parts, pair.y, seen, step, memory); return Pair(x, y)",
        "return Pair(candidate.x.point, candidate.y)",
        "return Pair(x, jnp.where(flag, a.y, b.y))",
        "return row(primal, violation, view.move, theta=1.0)",
        "y = jnp.zeros_like(c); return Pair(x, y)",
    ],
)
def test_an_honest_line_passes(line):
    assert multiplier_updates(f"def step(view, pair, x, y, v):\n    {line}\n") == []


def test_only_the_saddle_step_moves_a_multiplier():
    folders = [ROOT / name for name in ("methods", "training", "models")]
    files = [path for folder in folders for path in folder.rglob("*.py")]
    assert files
    found = {path.relative_to(ROOT).as_posix(): multiplier_updates(path.read_text()) for path in files}
    assert {name: lines for name, lines in found.items() if lines} == {}


# --- size, banned names, documentation -------------------------------------------------------------------------------


def test_files_are_short_and_well_named():
    long = {p.relative_to(ROOT).as_posix(): n for p in FILES if (n := len(p.read_text().splitlines())) > 400}
    assert long == {}
    assert [p for p in FILES if p.stem in ("utils", "helpers", "common", "misc")] == []


def banned(source):
    """Uses of what may execute data, and of JAX's global configuration."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [
                n for n in names if n.split(".")[0] in ("pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve")
            ]
        if isinstance(node, ast.Call):
            text = ast.unparse(node.func)
            if text in (
                "eval",
                "exec",
                "yaml.load",
                "yaml.unsafe_load",
                "torch.load",
                "jax.config.update",
                "config.update",
            ):
                found.append(text)
            for word in node.keywords:
                if (
                    word.arg in ("allow_pickle", "trust_remote_code")
                    and getattr(word.value, "value", None) is not False
                ):
                    found.append(word.arg)
    return found


def test_nothing_is_unpickled_executed_or_configured():
    used = {p.relative_to(ROOT).as_posix(): banned(p.read_text()) for p in FILES}
    allowed = {"runtime/cache.py": {"jax.config.update"}}  # called by the command line, never by the library
    wrong = {name: [w for w in words if w not in allowed.get(name, ())] for name, words in used.items()}
    assert {name: words for name, words in wrong.items() if words} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "eval('1')", "yaml.load(f)", "np.load(f, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=flag)", "jax.config.update('jax_enable_x64', True)",
    ],
)  # fmt: skip
def test_banned_names_are_found(source):
    assert len(banned(source)) >= 1
    assert banned("np.load(f, allow_pickle=False); yaml.safe_load(f)") == []


def undocumented(name, path):
    tree = ast.parse(path.read_text())
    missing = [] if ast.get_docstring(tree) else [name]
    public = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")]
    for node in public:
        if not ast.get_docstring(node):
            missing.append(f"{name}.{node.name}")
    return missing


def test_every_public_name_is_documented():
    assert [m for name, path in MODULES.items() for m in undocumented(name, path)] == []


def test_exported_names_that_compute_have_an_example():
    without = []
    for name in pdopt.__all__:
        thing = getattr(pdopt, name)
        own = inspect.getdoc(thing) or ""
        data = inspect.isclass(thing) and (issubclass(thing, tuple) or name in ("Status", "Solution"))
        if callable(thing) and not data and "Example:" not in own:
            without.append(name)
    assert without == []
    assert sorted(pdopt.__all__) == pdopt.__all__ or set(pdopt.__all__) == set(dict.fromkeys(pdopt.__all__))
    assert all(hasattr(pdopt, name) for name in pdopt.__all__)


# --- light imports ---------------------------------------------------------------------------------------------------

HEAVY = (
    "transformers", "datasets", "orbax", "highspy", "typer", "matplotlib", "rich",
    "torch", "tokenizers", "safetensors",
)  # fmt: skip


def child(code):
    """Run code in a fresh interpreter at the project's root, with warnings as errors; what it printed, by line."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=env, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


def test_importing_the_package_is_light_and_changes_nothing():
    code = f"""
        import sys, jax
        from jax._src import xla_bridge
        before = dict(jax.config.values)
        import pdopt
        assert dict(jax.config.values) == before, "configuration changed"
        assert not xla_bridge.backends_are_initialized(), "an array was made"
        print(*[name for name in {HEAVY} if name in sys.modules])
    """
    assert child(code) == []


def test_importing_every_module_makes_no_array_and_changes_no_configuration():
    names = sorted(name for name in MODULES if not name.endswith("__main__"))
    code = f"""
        import importlib, jax
        from jax._src import xla_bridge
        before = dict(jax.config.values)
        for name in {names}:
            importlib.import_module(name)
            assert not xla_bridge.backends_are_initialized(), name
            assert dict(jax.config.values) == before, name
    """
    assert child(code) == []
