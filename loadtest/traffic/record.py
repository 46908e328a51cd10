"""What a run remembers of each request, and the result file that holds a whole run."""

import csv
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from loadtest.base.inputs import ProfileError

Clock = Callable[[], float]  # seconds after the start of the run
FORMAT = "wan-loadtest-result/1"
STAGES = ("queue", "text_encoder", "denoise", "vae_decoder", "encode")
COMPUTE = ("text_encoder", "denoise", "vae_decoder")


@dataclass
class Record:
    """One request. All times are seconds after the start of the run; None means that it was never reached.

    outcome: completed, rejected (429/503), failed (the job failed), cancelled, error (transport or wrong answer),
    timeout (not finished when the run or the request ran out of time), dropped (never sent: limits.in_flight).
    """

    index: int
    shape: str
    priority: str
    intended: float
    in_system: int = 0
    sent: float | None = None
    accepted: float | None = None
    started: float | None = None
    finished: float | None = None
    delivered: float | None = None
    outcome: str = "timeout"
    error: str = ""
    job_id: str = ""
    content_bytes: int = 0
    predicted_gpu_seconds: float | None = None
    stages: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.outcome == "completed"

    @property
    def total(self) -> float:
        """Seconds from the intended arrival to the video in hand; infinite if it never came."""
        end = self.delivered if self.delivered is not None else self.finished
        return end - self.intended if self.ok and end is not None else math.inf

    @property
    def wait(self) -> float | None:
        """Seconds from the intended arrival to the start of the work: sender's delay plus the queue's own figure.

        Without a queue figure (Triton called directly): everything that is not a stage's compute.
        """
        if not self.ok:
            return math.inf
        if "queue" in self.stages and self.sent is not None:
            return self.sent - self.intended + self.stages["queue"]
        compute = [self.stages[name] for name in COMPUTE if name in self.stages]
        if compute:
            return max(0.0, self.total - sum(compute) - self.stages.get("encode", 0))
        return self.started - self.intended if self.started is not None else None

    @property
    def compute_seconds(self) -> float | None:
        """Device seconds of the model's stages."""
        known = [self.stages[name] for name in COMPUTE if name in self.stages]
        return sum(known) if known else None


@dataclass
class Result:
    """A finished run: what was asked, on what machine, every record, the figures, the verdict and metric series."""

    name: str
    profile: dict
    environment: dict
    window: dict
    records: list[Record]
    summary: dict = field(default_factory=dict)
    verdict: dict = field(default_factory=dict)
    series: dict = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write result.json and records.csv."""
        folder.mkdir(parents=True, exist_ok=True)
        data = {"format": FORMAT, **asdict(self)}
        (folder / "result.json").write_text(json.dumps(data, indent=1, allow_nan=False), encoding="utf-8")
        with (folder / "records.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            columns = [f.name for f in fields(Record) if f.name != "stages"]
            writer.writerow([*columns, *(f"{s}_seconds" for s in STAGES), "wait_seconds", "total_seconds"])
            for record in self.records:
                writer.writerow(
                    [
                        *(getattr(record, name) for name in columns),
                        *(record.stages.get(stage, "") for stage in STAGES),
                        record.wait if record.ok else "",
                        record.total if record.ok else "",
                    ]
                )

    @classmethod
    def load(cls, path: str | Path) -> "Result":
        """Read result.json (or a folder that holds one)."""
        path = Path(path)
        path = path / "result.json" if path.is_dir() else path
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data.pop("format") != FORMAT:
                raise ValueError(f"format is not {FORMAT}")
            data["records"] = [Record(**record) for record in data["records"]]
            return cls(**data)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ProfileError(f"{path}: not a result file of this program: {error}") from error
