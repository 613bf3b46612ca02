"Code that fits the page, and a public interface that says what it takes: every notebook and every module is held to it."
import ast
import importlib
import io
import json
import re
import tokenize
import typing
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(p for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
MODULES = sorted(p for p in (ROOT/"papersuite").rglob("*.py") if p.name != "_modidx.py")
WIDE, LONG, DENSE = 110, 25, 300
PLOTTING = re.compile(r"\b(ax|axes|axs|axis|fig|plt|a\d?|left|right|above|below)\b[.\[]")


def name(path): return path.relative_to(ROOT).with_suffix("").as_posix()


def code_cells(path):
    "Number -> source of the code cells, without the lines of IPython's own."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = {k: "".join(c["source"]) for k, c in enumerate(cells) if c["cell_type"] == "code"}
    return {k: re.sub(r"^\s*[%!].*$", "", source, flags=re.MULTILINE) for k, source in sources.items()}


def statements(tree):
    "Every statement, with the block that it stands in."
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if isinstance(block, list): yield from ((id(block), n) for n in block if isinstance(n, ast.stmt))


def joined(source):
    "Lines that hold several statements of a block, plotting aside."
    starts, lines = Counter((n.lineno, block) for block, n in statements(ast.parse(source))), source.splitlines()
    return sorted({lines[line - 1] for (line, _), n in starts.items() if n > 1 and not PLOTTING.search(lines[line - 1])})


def faults(source):
    "What a reader would see of a cell that holds too much."
    lines = [line for line in source.splitlines() if line.strip() and not line.startswith("#|")]
    wide = [line for line in source.splitlines() if len(line) > WIDE and not line.startswith("#|")]
    nodes = sum(1 for _ in ast.walk(ast.parse(source)))
    found = [f"more than {WIDE} characters: {line.strip()}" for line in wide]
    found += [f"several statements: {line.strip()}" for line in joined(source)]
    if len(lines) > LONG: found.append(f"{len(lines)} lines; split the thought")
    if nodes > DENSE: found.append(f"{nodes} syntax nodes; name what is in between")
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_code_fits_the_page(path):
    found = [f"cell {k}: {fault}" for k, source in code_cells(path).items() for fault in faults(source)]
    assert not found, "\n".join(found)


def test_a_wide_a_joined_a_long_and_a_dense_cell_are_seen():
    assert not faults("if x: y = 1\nax.plot(x); ax.set(title='t')")
    assert [f.split(":")[0] for f in faults("x = 1; y = 2")] == ["several statements"]
    assert "characters" in faults("x = '" + "a" * 110 + "'")[0]
    assert "lines" in faults("\n".join(f"x{k} = 1" for k in range(26)))[0]
    assert "nodes" in faults("x = " + " + ".join(["a.b(c)"] * 60).replace(" + ", " +\\\n", 3))[-1]


def decorated(function, word): return any(word in ast.unparse(d) for d in function.decorator_list)


def public_functions(tree):
    "Qualified name, function and its own parameters, for all that a user may call."
    exported = next((ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"), [])
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name in exported:
            methods = [m for m in node.body if isinstance(m, ast.FunctionDef)]
            yield from ((f"{node.name}.{m.name}", m) for m in methods if m.name == "__init__" or not m.name.startswith("_"))
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_") or decorated(node, ".command") or decorated(node, ".group"): continue
        if decorated(node, "patch"): yield f"{ast.unparse(node.args.args[0].annotation)}.{node.name}", node
        elif node.name in exported: yield node.name, node


def parameters(function):
    "Its parameters, without the object that a method belongs to."
    a = function.args
    every = [*a.posonlyargs, *a.args, *([a.vararg] if a.vararg else []), *a.kwonlyargs, *([a.kwarg] if a.kwarg else [])]
    return [p for p in every if p.arg not in ("self", "cls")]


def returns_something(function):
    "Has it a `return` with a value, or a `yield`, of its own?"
    todo = list(function.body)
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.Yield, ast.YieldFrom)) or (isinstance(node, ast.Return) and node.value is not None): return True
        if not isinstance(node, (ast.FunctionDef, ast.Lambda, ast.ClassDef)): todo += ast.iter_child_nodes(node)
    return False


def commented(text):
    "Numbers of the lines that end in a comment."
    return {t.start[0] for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.COMMENT}


def undocumented(text):
    "Parameters without a comment, functions without a docstring, fields of data classes without a comment."
    tree, lines = ast.parse(text), commented(text)
    for qualified, function in public_functions(tree):
        if function.name != "__init__" and not ast.get_docstring(function): yield f"{qualified} has no docstring"
        defaults = {d.lineno: d.end_lineno for d in [*function.args.defaults, *function.args.kw_defaults] if d}
        for p in parameters(function):
            if not {p.end_lineno, defaults.get(p.end_lineno)} & lines: yield f"{qualified}: {p.arg} has no comment"
    for node in tree.body:
        if not isinstance(node, ast.ClassDef) or node.name.startswith("_"): continue
        if not ast.get_docstring(node): yield f"{node.name} has no docstring"
        fields = [n for n in node.body if isinstance(n, ast.AnnAssign) and not ast.unparse(n.target).startswith("_")]
        described = lambda n: n.end_lineno in lines or isinstance(n.value, ast.Call) and "_setting" in ast.unparse(n.value)
        yield from (f"{node.name}: {ast.unparse(n.target)} has no comment" for n in fields if not described(n))


def untyped(text):
    "Parameters and results without a type."
    for qualified, function in public_functions(ast.parse(text)):
        yield from (f"{qualified}: {p.arg} has no type" for p in parameters(function) if p.annotation is None)
        if function.name != "__init__" and function.returns is None and returns_something(function): yield f"{qualified}: the result has no type"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_every_parameter_is_described_and_typed(path):
    text = path.read_text(encoding="utf-8")
    found = [*undocumented(text), *untyped(text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_every_type_is_one(path):
    "A name in an annotation that the module does not know would be an error for whoever asks for it."
    if path.stem == "__main__": pytest.skip("runs the program when it is imported")
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    for qualified, _ in public_functions(ast.parse(path.read_text(encoding="utf-8"))):
        found = module
        for part in qualified.split("."): found = getattr(found, part)
        if isinstance(found, property): found = found.fget
        if callable(found) and hasattr(found, "__annotations__"): typing.get_type_hints(found)


def test_what_lacks_a_comment_or_a_type_is_seen():
    text = '__all__ = ["f"]\ndef f(\n    a: int, # one\n    b,\n):\n    "Sum."\n    return a + b\n'
    assert [*undocumented(text)] == ["f: b has no comment"]
    assert [*untyped(text)] == ["f: b has no type", "f: the result has no type"]
