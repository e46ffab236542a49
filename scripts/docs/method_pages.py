"""The losses, and what the diagnosis can find, as pages: read from the table of methods and from the rules' source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cells import row

from cwdpo.cli.methods import method_rows

RULES = Path(__file__).parents[2] / "src" / "cwdpo" / "probes" / "diagnosis"


def methods_page() -> str:
    """Return the page of `cwdpo methods`."""
    lines = [
        "# Losses of both stages",
        "",
        "What `cwdpo methods` prints. Δ = log π_θ − log π_ref, summed over the response; r = βΔ; m = r_w − r_l; ℓ̄ is a "
        "mean per token; ~ is the altered image. [The method](method.md) says what a line cannot.",
        "",
    ]
    rows = method_rows()
    for key in dict.fromkeys(method["key"] for method in rows):
        lines += [f"## {key}", "", "| value | loss | from | settings |", "|---|---|---|---|"]
        for method in (m for m in rows if m["key"] == key):
            note = f"<br>{method['note']}" if method["note"] else ""
            source = f"{method['title']}: {method['paper']}{note}"
            lines.append(row((f"`{method['name']}`", method["formula"], source, method["settings"])))
        lines.append("")
    return "\n".join(lines)


@dataclass(frozen=True)
class RuleText:
    """What a rule can say.

    Attributes:
        rule: Its name.
        severity: How bad it can be.
        meaning: When it speaks.
        sentence: What it says; … stands for figures.
        remedy: What to change; choices in ‹brackets› depend on the run.
    """

    rule: str
    severity: str
    meaning: str
    sentence: str
    remedy: str


def findings_page() -> str:
    """Return the page of everything that the diagnosis can find."""
    lines = [
        "# What the diagnosis can find",
        "",
        "Every finding of a report, in its own words. … stands for figures of your run; where the words depend on the "
        "run, the choices stand in ‹brackets›; STAGE is `stage1` or `stage2`. Thresholds are in "
        "[Learning dynamics](dynamics.md#diagnosis). This page is made from the rules.",
        "",
    ]
    found: dict[str, list[RuleText]] = {}
    for text in rule_texts():
        found.setdefault(text.rule, []).append(text)
    for rule, texts in found.items():
        lines += [f"## {rule}", ""]
        for text in texts:
            lines += [f"*{text.severity}.* {text.meaning}", "", f"> {text.sentence}", ""]
            lines += [f"**What to do.** {text.remedy}", ""]
    return "\n".join(lines)


def rule_texts() -> list[RuleText]:
    """Return the texts of all findings, in the order of the source."""
    return [text for name in ("probe_rules.py", "metric_rules.py") for text in _texts(RULES / name)]


def _texts(file: Path) -> Iterator[RuleText]:
    for function in ast.parse(file.read_text(encoding="utf-8")).body:
        if not isinstance(function, ast.FunctionDef):
            continue
        said = dict(_named(function))
        for call in ast.walk(function):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Finding":
                rule, severity, sentence, remedy = (_words(arg, said) for arg in call.args[:4])
                meaning = (ast.get_docstring(function) or "").splitlines()[0]
                yield RuleText(rule, severity.strip("‹›"), meaning, sentence, remedy)


def _words(node: ast.expr, said: dict[str, ast.expr]) -> str:
    """Return an expression that makes a text as that text, … for what is known only in a run."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(_words(part, said) for part in parts)
        case ast.FormattedValue(value=ast.Attribute(attr="stage")):
            return "STAGE"
        case ast.FormattedValue(value=value, format_spec=None):
            return _words(value, said)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _words(left, said) + _words(right, said)
        case ast.IfExp(body=body, orelse=other):
            options = [text for text in (_words(body, said), _words(other, said)) if text]
            return _choice(options)
        case ast.Name(id=name) if isinstance(said.get(name), (ast.Constant, ast.JoinedStr, ast.IfExp, ast.BinOp)):
            rest = {key: value for key, value in said.items() if key != name}
            return _words(said[name], rest)
        case _:
            return "…"


def _named(function: ast.FunctionDef) -> Iterator[tuple[str, ast.expr]]:
    """Yield the names that a function gives to expressions."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            yield node.target.id, node.value


def _choice(options: list[str]) -> str:
    """Return texts of which a run has one, with the space before and after them outside of the brackets."""
    before = " " if any(text.startswith(" ") for text in options) else ""
    after = " " if any(text.endswith(" ") for text in options) else ""
    return f"{before}‹{' | '.join(text.strip() for text in options)}›{after}"
