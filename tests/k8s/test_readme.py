"""The operators' README: every command can be run, every path is there, and the numbers are those of the simulator."""

import json
import re
import shlex

import pytest

from contract import ModelCard
from contract.cost import CostModel
from loadtest.fleet import deadlines, frontier
from loadtest.fleet.fleet import Fleet, FleetOptions
from loadtest.fleet.mix import DEFAULT_MIX, parse_mix
from loadtest.fleet.report import summarise
from loadtest.fleet.rules import OURS, rules
from loadtest.fleet.scaling import ScalingPolicy
from loadtest.fleet.trace import make_trace
from tests.k8s.rendering import K8S, OVERLAYS, ROOT, SERVING, named, of_kind

README = (K8S / "README.md").read_text()
COMMANDS = [
    line.strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


def arguments(program: str) -> list[list[str]]:
    return [words for command in COMMANDS if (words := shlex.split(command))[0] == program]


def option(words: list[str], *names: str) -> str | None:
    return next((words[n + 1] for n, word in enumerate(words[:-1]) if word in names), None)


def test_every_program_is_one_an_operator_has():
    assert {shlex.split(command)[0] for command in COMMANDS} == {
        "kubectl",
        "docker",
        "helm",
        "kind",
        ".venv/bin/bentoml",
    }


def test_every_kustomization_that_is_applied_renders():
    applied = [option(words, "-k") for words in arguments("kubectl") if words[1] == "apply"]
    assert applied
    for path in applied:
        assert path.startswith("k8s/overlays/")
        assert path.removeprefix("k8s/overlays/") in OVERLAYS


def test_engines_are_built_before_the_servers_start():
    text = " ".join(COMMANDS)
    for overlay in ("one-gpu", "eight-gpu"):
        assert re.search(rf"k8s/overlays/{overlay}/engines.*k8s/overlays/{overlay}(\s|$)", text), overlay


def test_every_object_that_is_named_exists():
    kinds = {"deployment": "Deployment", "service": "Service", "job": "Job"}
    for words in arguments("kubectl"):
        for kind, name in re.findall(r"\b(deployment|service|job)/(\S+)", " ".join(words)):
            overlay = "one-gpu/engines" if kind == "job" else "one-gpu"
            assert named(overlay, kinds[kind], name)["metadata"]["namespace"] == option(words, "-n")


def test_every_image_that_is_built_is_one_that_the_overlays_run():
    built = {option(words, "-t") for words in arguments("docker")}
    used = set()
    for overlay in SERVING:
        for item in of_kind(overlay, "Deployment"):
            pod = item["spec"]["template"]["spec"]
            used |= {c["image"] for c in pod["containers"] + pod.get("initContainers", [])}
    assert used == built
    for words in arguments("docker"):
        assert (ROOT / option(words, "-f")).is_file()


def test_every_path_in_the_text_exists():
    for path in re.findall(r"`((?:k8s|overlays|components|base)/[\w./-]+)`", README):
        assert (ROOT / path).exists() or (K8S / path).exists(), path
    for link in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (K8S / link).exists(), link
    for words in arguments("helm"):
        assert (ROOT / option(words, "-f")).is_file()


def test_the_formula_is_that_of_the_manifests():
    policy = ScalingPolicy.from_manifest()
    assert f"min( predicted seconds left / {policy.slot_seconds:.0f} s, 1 )" in README
    assert (policy.slots_per_replica, policy.busy_per_replica) == (1, 1)
    assert f"{policy.down_window / 60:.0f} minutes" in README


@pytest.mark.parametrize(
    ("label", "rule"),
    [
        ("**demand and busy (ours)**", OURS),
        ("demand alone", "without busy floor"),
        ("predicted GPU-seconds, not capped at a slot a job, and busy", "uncapped"),
        ("number of jobs, 1 a replica", "jobs"),
        ("number of jobs, 1.5 a replica, and busy", "jobs and busy"),
        ("queue length (pending requests), 1 a replica", "queue length"),
        ("GPU utilisation, 80 %", "GPU utilisation"),
    ],
)
def test_the_comparison_is_what_the_simulator_says(label, rule):
    policy = ScalingPolicy.from_manifest().resized(max_replicas=64)
    trace = make_trace("day", 20_000, 600.0, parse_mix(DEFAULT_MIX), 0.1, 1)
    kind = rules(policy)[rule]
    row = summarise(Fleet(trace, policy, kind.make(kind.target), FleetOptions(), 1).run())
    expected = [f"{row[f'wait_p{p}']:.0f} s" for p in (50, 95, 99)]
    expected += [f"{row['gpu_hours_per_video']:.4f}", f"{100 * row['wasted_share']:.0f} %", str(row["scale_downs"])]
    assert f"| {label} | {' | '.join(expected)} |" in README


def test_what_is_said_of_the_hpa_is_what_the_simulator_says():
    policy = ScalingPolicy.from_manifest().resized(max_replicas=64)
    trace = make_trace("day", 20_000, 600.0, parse_mix(DEFAULT_MIX), 0.1, 1)
    ours = rules(policy)[OURS].make(rules(policy)[OURS].target)
    own = summarise(Fleet(trace, policy.with_hpa(), ours, FleetOptions(), 1).run())
    assert f"the p95 is {own['wait_p95']:.0f} s, and it scales down {own['scale_downs']} times" in README
    away = summarise(Fleet(trace, policy, ours, FleetOptions(blind=(43_200.0, 46_800.0)), 1).run())
    assert f"p99 of the wait {away['wait_p99']:.0f} s" in README


def test_the_frontier_is_that_of_the_numbers():
    mixes = json.loads((ROOT / "loadtest/results/frontier.json").read_text())["mixes"]
    assert set(mixes) == set(frontier.MIXES)
    assert frontier.table(mixes) in README
    assert frontier.table_of_one_target(mixes) in README


def test_the_orders_of_the_queue_are_those_of_the_numbers():
    assert deadlines.table(json.loads((ROOT / "loadtest/results/deadlines.json").read_text())) in README


def test_a_pod_a_gpu_beats_stages_on_gpus_of_their_own():
    """By the shipped cost file: eight pods do eight whole jobs, six denoise slots wait for nobody and are still fewer."""
    card, costs = ModelCard.load(K8S / "base/pool/wan.json"), CostModel.load(K8S / "base/pool/cost.json")
    whole = costs.predict(vars(card.request(prompt="x")), card.geometry)
    defaults = card.defaults
    denoising = (
        whole - costs.overhead - costs.decoding(defaults.width, defaults.height, defaults.num_frames, card.geometry)
    )
    single, staged = 8 * 3600 / whole, 6 * 3600 / denoising
    assert f"make {single:.0f} videos an hour and node, `eight-gpu` {staged:.0f}" in README
