"""What a run says: waits, GPU-hours per video, wasted GPU-seconds."""

import numpy as np

from loadtest.fleet.fleet import Fleet

PERCENTILES = (50, 95, 99)


def waits(fleet: Fleet) -> np.ndarray:
    """Seconds from arrival to the first start, per job."""
    return np.array(fleet.first_start) - fleet.trace.arrival


def summarise(fleet: Fleet, gpus: int = 1) -> dict:
    """The row of one run; times in seconds, money in GPU-hours, a replica having so many GPUs."""
    accounts, wait = fleet.accounts, waits(fleet)
    finish = np.array(fleet.finish)
    latency = finish - fleet.trace.arrival
    replicas = np.array([sample[3] for sample in accounts.samples] or [fleet.replicas])
    return {
        "jobs": len(wait),
        "simulated_hours": float(finish.max() / 3600),
        "wait_mean": float(wait.mean()),
        **{f"wait_p{p}": float(np.percentile(wait, p)) for p in PERCENTILES},
        **{f"latency_p{p}": float(np.percentile(latency, p)) for p in PERCENTILES},
        "gpu_hours_per_video": gpus * accounts.total / 3600 / len(wait),
        "useful_gpu_hours_per_video": gpus * accounts.useful / 3600 / len(wait),
        "wasted_gpu_seconds": gpus * accounts.wasted,
        "wasted_share": accounts.wasted / accounts.total,
        "cold_gpu_seconds": gpus * accounts.cold,
        "idle_gpu_seconds": gpus * accounts.idle,
        "lost_gpu_seconds": gpus * accounts.lost,
        "replicas_mean": float(replicas.mean()),
        "replicas_max": int(replicas.max()),
        "spot_losses": accounts.losses,
        "jobs_interrupted": accounts.interrupted,
        "scale_ups": accounts.scale_ups,
        "scale_downs": accounts.scale_downs,
    }


def table(rows: dict[str, dict]) -> str:
    """The rows as Markdown, one line a scenario."""
    columns = [
        ("wait p50", "wait_p50", "{:.0f} s"),
        ("p95", "wait_p95", "{:.0f} s"),
        ("p99", "wait_p99", "{:.0f} s"),
        ("GPU-hours/video", "gpu_hours_per_video", "{:.4f}"),
        ("wasted", "wasted_share", "{:.0%}"),
        ("of it idle", "idle_gpu_seconds", "{:.0f} GPU-s"),
        ("cold", "cold_gpu_seconds", "{:.0f} GPU-s"),
        ("lost", "lost_gpu_seconds", "{:.0f} GPU-s"),
        ("replicas mean/max", None, ""),
        ("scale-downs", "scale_downs", "{}"),
    ]
    lines = ["| scenario | " + " | ".join(name for name, _, _ in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        cells = [
            text.format(row[key]) if key else f"{row['replicas_mean']:.1f}/{row['replicas_max']}"
            for _, key, text in columns
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
