"""A Python file as a template: valid code that is checked like any other, filled in for one use.

    fill(text, values={"MODEL": '"pocket"'}, facts={"held_out"})

Four rules:

- an assignment on the left margin whose name is in `values` gets that value;
- what stands between the comments `# if: NAME` and `# end` is kept where NAME is a fact, and
  between `# if: not NAME` and `# end` where it is none;
- the docstring is the value of `__doc__`;
- imports that nothing uses any more go.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Set

_IF = re.compile(r"\s*# if: (not )?(\w+)$")
_END = re.compile(r"\s*# end$")
_LONGEST = 100


def fill(text: str, values: Mapping[str, str], facts: Set[str]) -> str:
    """The template with its values and without the blocks that nothing asks for.

    Raises KeyError for a value that the template has no place for, ValueError for a block that is
    not closed.
    """
    return _prune_imports(_choose(_assign(text, values), facts))


def blocks(text: str) -> set[str]:
    """Names of all facts that a template knows."""
    return {found[2] for line in text.splitlines() if (found := _IF.match(line))}


def _choose(text: str, facts: Set[str]) -> str:
    """Only the lines whose blocks are all wanted; blocks may lie in each other."""
    kept: list[str] = []
    wanted: list[bool] = []
    for line in text.splitlines():
        if condition := _IF.match(line):
            wanted.append((condition[2] in facts) is not bool(condition[1]))
        elif _END.match(line):
            wanted.pop()
        elif all(wanted):
            kept.append(line)
    if wanted:
        raise ValueError("expected an `# end` for every `# if:` of the template")
    return "\n".join(kept) + "\n"


def _assign(text: str, values: Mapping[str, str]) -> str:
    """The values at the assignments of their names, from the last line to the first."""
    places: dict[str, tuple[ast.stmt, str]] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Expr) and "__doc__" not in places:
            places["__doc__"] = node, ""
        elif isinstance(node, ast.Assign):
            name = ast.unparse(node.targets[0]).strip("()")
            places.setdefault(name, (node, f"{name} = "))
    lines = text.splitlines()
    chosen = [(*places[name], value) for name, value in values.items()]
    for node, start, value in sorted(chosen, key=lambda found: -found[0].lineno):
        assert node.end_lineno is not None
        tail = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode()
        lines[node.lineno - 1 : node.end_lineno] = (start + value + tail).splitlines()
    return "\n".join(lines) + "\n"


def _prune_imports(text: str) -> str:
    """Imports with the names that are used."""
    tree = ast.parse(text)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    lines = text.splitlines()
    for node in reversed(tree.body):
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert node.end_lineno is not None
            lines[node.lineno - 1 : node.end_lineno] = _import(node, used)
    return "\n".join(lines) + "\n"


def _import(node: ast.Import | ast.ImportFrom, used: set[str]) -> list[str]:
    """An import statement of what is used, in lines; none where nothing is."""
    names = [alias for alias in node.names if (alias.asname or alias.name).split(".")[0] in used]
    if not names:
        return []
    line = ast.unparse(type(node)(**{**vars(node), "names": names}))
    if len(line) <= _LONGEST:
        return [line]
    head, _, rest = line.partition(" import ")
    return [f"{head} import (", *(f"    {name}," for name in rest.split(", ")), ")"]
