"""`cwdpo score`: log-probabilities of given responses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cwdpo.cli.terminal.options import Columns, Force, columns_of

__all__ = ["score"]


def score(
    model: Annotated[str, typer.Option(help="Model directory or hub id.")],
    data: Annotated[Path, typer.Option(help="Data file with responses, in any known format.")],
    out: Annotated[Path, typer.Option(help="JSON-lines file to write, one line per response.")],
    columns: Columns = None,
    reference: Annotated[str | None, typer.Option(help="Reference model: adds delta and cooling_weight.")] = None,
    floor: Annotated[float, typer.Option(help="ℓ_floor of the cooling weight.")] = -3.0,
    tau: Annotated[float, typer.Option(help="τ of the cooling weight.")] = 1.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Batch size, in prompts.")] = 8,
    force: Force = False,
) -> None:
    """Score every response under a model: log-probability, length, entropy; with a reference also Δ and w_c."""
    from cwdpo.cli.terminal.console import quiet_libraries
    from cwdpo.data import DataSource
    from cwdpo.evaluation.score_responses import score_responses
    from cwdpo.files import write_jsonl
    from cwdpo.outputs import output

    quiet_libraries()
    with output(out, "score", reads=[data], force=force) as draft:
        source = DataSource(path=data, require="response", columns=columns_of(columns))
        rows = score_responses(model, source, reference=reference, floor=floor, tau=tau, batch_size=batch_size)
        write_jsonl(draft.file, rows)
    typer.echo(f"wrote {len(rows)} responses to {out}")
