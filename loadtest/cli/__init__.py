"""The commands of the command line: options in, files and an exit code out."""

from loadtest.cli import capacity, compare, perf_analyzer, plan, run, scaling, soak, table

ALL = (
    ("run", "Run a load profile; exit code 1 if its SLO is not met.", run),
    ("capacity", "Find the highest arrival rate that meets the SLO.", capacity),
    ("plan", "Turn a capacity and a traffic forecast into replicas and cost.", plan),
    ("compare", "Compare two results; exit code 1 on a regression.", compare),
    ("soak", "Hold a load for a long time and name what leaks.", soak),
    (
        "perf-analyzer",
        "Run NVIDIA's perf_analyzer on the ensemble and its stages, beside our own client.",
        perf_analyzer,
    ),
    ("scaling", "Throughput with 1, 2, … workers, and the cost of a job against the length of the queue.", scaling),
    ("table", "Run the measurements of the README, and print them as one Markdown table.", table),
)
