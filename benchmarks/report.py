"""The table on the terminal, and the verdict of each row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from benchmarks.plan import Row
    from benchmarks.runner import Figures, Measured


def verdict(row: Row, measured: Measured) -> tuple[bool | None, dict[str, float]]:
    """Whether the row reaches all that it must, and the ratios behind that; ``None``: not measured."""
    ratios: dict[str, float] = {}
    value = measured.ours.get(row.figure)
    if value is None:
        return None, ratios
    holds = True
    if row.bar is not None:
        holds = value >= row.bar if row.better == "more" else value <= row.bar
    if row.limit_figure and (share := measured.share(row.figure, row.limit_figure)) is not None:
        ratios["of_limit"] = share
        holds = holds and (row.limit_share is None or share >= row.limit_share)
    if row.floor:
        ratios[row.floor[0]] = measured.ours[row.floor[0]]
        holds = holds and measured.ours[row.floor[0]] >= row.floor[1]
    for peer, figures in measured.peers.items():
        if row.peer_figure and (theirs := figures.get(row.peer_figure)):
            ratios[peer] = value / theirs if row.better == "more" else theirs / value
    return holds, ratios


def as_json(row: Row, measured: Measured) -> dict[str, Any]:
    """The row as it goes into the results."""
    holds, ratios = verdict(row, measured)
    return {
        "job": row.job,
        "work": row.work,
        "unit": row.unit,
        "must": _must(row),
        "measured": measured.ours.get(row.figure),
        "limit": measured.limit.get(row.limit_figure) if row.limit_figure else None,
        "peers": {name: figures.get(row.peer_figure) for name, figures in measured.peers.items() if row.peer_figure},
        "ratios": ratios,
        "holds": holds,
    }


def table(rows: list[dict[str, Any]], *, peers_from: str | None) -> Table:
    """The rows of the results, as printed."""
    title = "event-workflow-engine: where no server is named, SQLite, WAL, synchronous=FULL, one process"
    shown = Table(title=title, title_justify="left", caption=peers_from, caption_justify="left")
    shown.add_column("work")
    shown.add_column("must", justify="right")
    shown.add_column("measured", justify="right")
    shown.add_column("raw limit", justify="right")
    shown.add_column("ours / limit", justify="right")
    shown.add_column("peers (× ours is better)")
    for row in rows:
        ratios = row["ratios"]
        mark = {True: "[green]", False: "[red]", None: "[dim]"}[row["holds"]]
        share = f"{ratios['of_limit']:.2f}×" if "of_limit" in ratios else ""
        if "long_share" in ratios:
            share = f"{ratios['long_share']:.2f}× of 1,000's"
        peers = ", ".join(
            f"{name} {number(value)}" + (f" ({ratios[name]:.3g}×)" if name in ratios else "")
            for name, value in row["peers"].items()
            if value is not None
        )
        measured = "failed" if row["measured"] is None else f"{number(row['measured'])} {row['unit']}"
        limit = "" if row["limit"] is None else number(row["limit"])
        shown.add_row(row["work"], escape(row["must"]), mark + measured, limit, share, peers)
    return shown


def limits_table(limits: dict[str, Figures]) -> Table:
    """The raw limits measured before everything else."""
    shown = Table(title="raw limits of this machine", title_justify="left")
    shown.add_column("limit")
    shown.add_column("figures")
    for name, figures in limits.items():
        shown.add_row(escape(name), ", ".join(f"{key} {number(value)}" for key, value in figures.items()))
    return shown


def number(value: float) -> str:
    """Three digits that count, and thousands marked."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 100 else f"{value:.3g}"


def _must(row: Row) -> str:
    parts = []
    if row.bar is not None:
        parts.append(("≥ " if row.better == "more" else "≤ ") + f"{number(row.bar)} {row.unit}")
    if row.limit_share is not None:
        parts.append(f"≥ {row.limit_share} of limit")
    if row.floor:
        parts.append(f"≥ {row.floor[1]} of 1,000's")
    return ", ".join(parts)
