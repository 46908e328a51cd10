"""The live view of a run in the terminal."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loadtest.base.stats import percentile
from loadtest.traffic.loops import Run

WINDOW = 60  # seconds of recent completions that the rate and percentiles show


def view(run: Run) -> Table:
    """One frame: progress, counts by outcome, and the recent figures per shape."""
    now = run.clock()
    ended = [record for record in run.records if record.finished is not None or record.error]
    counts = Counter(record.outcome for record in ended)
    head = Text.assemble(
        (run.profile.name, "bold"),
        f"  {run.profile.load.kind}  {run.profile.target.url}  {now:6.1f} s  ",
        f"sent {len(run.records)}/{run.planned}  in flight {run.in_system}  ",
        *((f"{name} {count}  ", "green" if name == "completed" else "red") for name, count in sorted(counts.items())),
    )
    table = Table(box=None, pad_edge=False)
    for column in ("shape", "done", "per min", "wait p50", "wait p95", "total p50", "total p95", "total p99"):
        table.add_column(column, justify="left" if column == "shape" else "right")
    for shape in run.profile.mix:
        recent = [r for r in ended if r.shape == shape.name and r.ok and (r.finished or 0) > now - WINDOW]
        waits = [wait for r in recent if (wait := r.wait) is not None]
        totals = [r.total for r in recent]
        rate = len(recent) / max(1.0, min(now, WINDOW)) * 60
        table.add_row(
            shape.name,
            str(sum(r.shape == shape.name and r.ok for r in ended)),
            f"{rate:.1f}",
            *(
                f"{percentile(values, q):.2f}" if values else "–"
                for values, q in ((waits, 50), (waits, 95), (totals, 50), (totals, 95), (totals, 99))
            ),
        )
    frame = Table.grid()
    for part in (head, ProgressBar(total=max(1, run.planned), completed=len(ended)), table):
        frame.add_row(part)
    return frame


@contextlib.asynccontextmanager
async def show(run: Run, every: float = 0.5) -> AsyncIterator[None]:
    """Refresh the view until the block ends; on a pipe only the last frame is printed."""
    with Live(view(run), console=Console(stderr=True), auto_refresh=False, transient=False) as live:

        async def refresh() -> None:
            while True:
                await asyncio.sleep(every)
                live.update(view(run), refresh=live.console.is_terminal)

        task = asyncio.create_task(refresh())
        try:
            yield
        finally:
            task.cancel()
            live.update(view(run), refresh=True)
