"""Pure: the specification -> the tables of the README."""

from __future__ import annotations

from .emit_python import function_name, module_arguments
from .neurons import FIRING, NEURONS, Neuron
from .surrogates import SURROGATES


def neuron_table() -> str:
    rows = ["| neuron | function, operator | module | equations |", "|---|---|---|---|"]
    for n in NEURONS:
        title = (n.__doc__ or "").split(":")[0].strip().rstrip(".")
        usual = {p.name: p.default for p in FIRING}
        unusual = [p for p in n.firing if p.default != usual[p.name]]
        arguments = ", ".join(f"{p.name}={p.default}" for p in (*module_arguments(n), *unusual))
        # Spike and reset stand above the table, where they are those of all neurons.
        own = [e for e in n.firing_equations if e not in Neuron.firing_equations]
        equations = "<br>".join(f"`{' '.join(e.split())}`" for e in (*n.equations, *own))
        rows.append(
            f"| {title} | `functional.{function_name(n)}`, `{n.name}_forward` | `nn.{n.module}({arguments})` | {equations} |"
        )
    return "\n".join(rows)


def surrogate_table() -> str:
    rows = ["| name | class | gradient | primitive |", "|---|---|---|---|"]
    for s in SURROGATES:
        arguments = ", ".join(f"{p.name}={int(p.default) if p.range.integer else p.default}" for p in s.parameters)
        cells = (
            f"`{s.name}`",
            f"`{s.__name__}({arguments})`",
            _code(s.gradient_text),
            _code(s.primitive_text) or "none",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _code(text: str) -> str:
    """Text as code in a table cell, where a bar ends the cell."""
    return f"`{text}`".replace("|", "\\|") if text else ""


TABLES = {"neurons": neuron_table, "surrogates": surrogate_table}


def readme(text: str) -> str:
    """The README with its tables made anew, between <!-- name --> and <!-- /name -->."""
    for name, table in TABLES.items():
        before, opening, rest = text.partition(f"<!-- {name} -->\n")
        _, closing, after = rest.partition(f"<!-- /{name} -->")
        if not opening or not closing:
            raise ValueError(f"the README must have a place <!-- {name} --> ... <!-- /{name} --> for a table")
        text = f"{before}{opening}{table()}\n{closing}{after}"
    return text
