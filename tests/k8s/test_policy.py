"""What every rendered pod must keep to: limits, probes, a hardened security context, references that exist, time to drain."""

import re
import shutil

import pytest

from export.placement import parse_placement
from service.worker.drain import parse_arguments as drain_arguments
from tests.k8s.rendering import (
    GPU_SERVING,
    K8S,
    OPERATORS_SECRETS,
    OVERLAYS,
    SERVING,
    WORKLOADS,
    config,
    container,
    containers,
    named,
    of_kind,
    pod_spec,
    render,
)

TRITON = "Deployment/wan-triton"


def seconds(text: str) -> int:
    return int(re.search(r"=(\d+)$", text)[1])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_container_is_locked_down(overlay):
    for each in containers(overlay):
        security = each.spec["securityContext"]
        assert security["readOnlyRootFilesystem"] is True, each
        assert security["allowPrivilegeEscalation"] is False, each
        assert security["privileged"] is False, each
        assert security["capabilities"] == {"drop": ["ALL"]}, each


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_locked_down(overlay):
    for workload in of_kind(overlay, *WORKLOADS):
        pod = pod_spec(workload)
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        # What the "restricted" Pod Security Standard allows.
        kinds = {kind for volume in pod.get("volumes", []) for kind in volume if kind != "name"}
        assert kinds <= {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_are_pinned(overlay):
    images = [each.spec["image"] for each in containers(overlay)]
    images += [item["spec"]["imageName"] for item in of_kind(overlay, "Cluster")]
    for image in images:
        assert re.search(r":v?\d+(\.\d+)+[\w.-]*$|@sha256:[0-9a-f]{64}$", image), image


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_container_has_requests_and_limits(overlay):
    for each in containers(overlay):
        resources = each.spec["resources"]
        for kind in ("cpu", "memory", "ephemeral-storage"):
            assert kind in resources["requests"], each
            assert kind in resources["limits"], each
        assert resources["requests"]["memory"] == resources["limits"]["memory"], each
        gpus = [resources[part].get("nvidia.com/gpu") for part in ("requests", "limits")]
        assert gpus[0] == gpus[1], each


@pytest.mark.parametrize("overlay", SERVING)
def test_every_long_running_container_has_probes(overlay):
    for each in containers(overlay):
        if each.kind != "init":
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(each.spec), each
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert each.spec[probe].get("timeoutSeconds", 1) < 3600


@pytest.mark.parametrize("overlay", SERVING)
def test_a_database_that_is_away_restarts_no_gateway(overlay):
    """/readyz asks the database; what kills a container must not."""
    gateway = container(overlay, "Deployment/wan-gateway", "gateway")
    paths = {name: gateway[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths == {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}


@pytest.mark.parametrize("overlay", SERVING)
def test_a_probe_gives_up_before_kubelet_cuts_it_off(overlay):
    from service.launcher.probe import parse_arguments

    triton = container(overlay, TRITON, "triton")
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        command = triton[name]["exec"]["command"]
        assert command[:3] == ["python3", "-m", "service.launcher.probe"]
        options = parse_arguments(command[3:])
        # The probe asks several questions, of which at most the last one takes long.
        assert options.timeout < triton[name]["timeoutSeconds"]
        assert options.within < triton[name]["timeoutSeconds"]
    probe = triton["startupProbe"]
    # What fails takes `within` at least and `timeoutSeconds` at most, however long kubelet means to pause.
    patience = parse_arguments(probe["exec"]["command"][3:]).within * probe["failureThreshold"]
    longest = max(probe["periodSeconds"], probe["timeoutSeconds"]) * probe["failureThreshold"]
    assert 1200 <= patience <= longest <= 1800
    assert longest < named(overlay, "Deployment", "wan-triton")["spec"]["progressDeadlineSeconds"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_reference_exists(overlay):
    existing = {(item["kind"], item["metadata"]["name"]) for item in render(overlay)}
    keys = {(i["kind"], i["metadata"]["name"]): set(i.get("data", {})) for i in of_kind(overlay, "Secret", "ConfigMap")}
    keys |= {("Secret", name): found for name, found in OPERATORS_SECRETS.items()}
    for cluster in of_kind(overlay, "Cluster"):
        # CloudNativePG writes this Secret: https://cloudnative-pg.io/documentation/current/applications/
        keys[("Secret", f"{cluster['metadata']['name']}-app")] = {
            "uri",
            "username",
            "password",
            "host",
            "port",
            "dbname",
        }
    existing |= set(keys)
    if overlay == "pool-14b":  # stands beside this one and shares its accounts and volumes
        existing |= {(item["kind"], item["metadata"]["name"]) for item in render("one-gpu")}
    for workload in of_kind(overlay, *WORKLOADS):
        pod = pod_spec(workload)
        claimed = {template["metadata"]["name"] for template in workload["spec"].get("volumeClaimTemplates", [])}
        volumes = {volume["name"] for volume in pod.get("volumes", [])} | claimed
        for volume in pod.get("volumes", []):
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in existing
            if source := volume.get("configMap"):
                assert ("ConfigMap", source["name"]) in existing
            if source := volume.get("secret"):
                assert ("Secret", source["secretName"]) in existing
            for source in volume.get("projected", {}).get("sources", []):
                wanted = {item["key"] for item in source["secret"].get("items", [])}
                assert source["secret"].get("optional") or wanted <= keys[("Secret", source["secret"]["name"])]
        assert ("ServiceAccount", pod["serviceAccountName"]) in existing
        assert ("PriorityClass", pod["priorityClassName"]) in existing
        for spec in pod["containers"] + pod.get("initContainers", []):
            assert {mount["name"] for mount in spec.get("volumeMounts", [])} <= volumes
            for source in spec.get("envFrom", []):
                kind = "ConfigMap" if "configMapRef" in source else "Secret"
                assert (kind, next(iter(source.values()))["name"]) in existing
            for variable in spec.get("env", []):
                if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                    assert reference["key"] in keys[("Secret", reference["name"])]


@pytest.mark.parametrize("overlay", SERVING)
def test_no_environment_shows_the_database_password_or_a_webhook_secret(overlay):
    for each in containers(overlay):
        assert not [
            variable for variable in each.spec.get("env", []) if "secretKeyRef" in variable.get("valueFrom", {})
        ]
        assert "WAN_WEBHOOK_SECRET" not in config(overlay, "wan-settings")
        if each.spec["name"] in ("gateway", "worker"):
            files, folder = mounted_secrets(overlay, each)
            assert "WAN_DATABASE_URL" in files
            assert {"name": "WAN_SECRETS_DIR", "value": folder} in each.spec["env"]


def mounted_secrets(overlay: str, each) -> tuple[set[str], str]:
    """File names of a container's secrets, and where they are."""
    kind, name = each.workload.split("/")
    volumes = {volume["name"]: volume for volume in pod_spec(named(overlay, kind, name))["volumes"]}
    sources = volumes["secrets"]["projected"]["sources"]
    files = {item["path"] for source in sources for item in source["secret"].get("items", [])}
    return files, next(mount["mountPath"] for mount in each.spec["volumeMounts"] if mount["name"] == "secrets")


@pytest.mark.parametrize("overlay", SERVING)
def test_declared_metrics_ports_are_not_bound_to_the_loopback(overlay):
    """Prometheus comes from outside the pod, to the launcher of the demo as well."""
    arguments = container(overlay, TRITON, "triton")["args"]
    assert {"--metrics-address=0.0.0.0", "--metrics-host=0.0.0.0"} & set(arguments)


@pytest.mark.parametrize("overlay", SERVING)
def test_service_accounts_have_no_api_access(overlay):
    assert all(item["automountServiceAccountToken"] is False for item in of_kind(overlay, "ServiceAccount"))
    assert not of_kind(overlay, "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")


@pytest.mark.parametrize("overlay", SERVING)
def test_grace_period_covers_drain_and_shutdown(overlay):
    pod = pod_spec(named(overlay, "Deployment", "wan-triton"))
    worker, triton = container(overlay, TRITON, "worker"), container(overlay, TRITON, "triton")
    command = worker["lifecycle"]["preStop"]["exec"]["command"]
    assert command[:3] == ["python3", "-m", "service.worker.drain"]
    budget = drain_arguments(command[3:]).budget
    arguments = [a for a in triton.get("args", []) if a.startswith("--exit-timeout-secs=")]
    # The launcher of the demo has no such argument; its own limit is 30 s.
    exit_timeout = seconds(arguments[0]) if arguments else 30
    assert pod["terminationGracePeriodSeconds"] >= budget + exit_timeout + 10
    # The worker must not hand its jobs over before preStop says so.
    assert float(config(overlay, "wan-settings")["WAN_DRAIN_SECONDS"]) >= budget


def test_grace_period_of_gpu_pods_fits_the_cluster_autoscaler():
    for overlay in GPU_SERVING:
        assert pod_spec(named(overlay, "Deployment", "wan-triton"))["terminationGracePeriodSeconds"] <= 600


def test_spot_pods_differ_only_in_how_fast_they_go():
    plain, spot = (container(overlay, TRITON, "triton")["args"] for overlay in ("one-gpu", "spot"))
    assert {a for a in plain + spot if a not in plain or a not in spot} == {
        "--exit-timeout-secs=30",
        "--exit-timeout-secs=3",
    }


def test_spot_pods_go_within_the_shortest_notice():
    assert pod_spec(named("spot", "Deployment", "wan-triton"))["terminationGracePeriodSeconds"] <= 30


@pytest.mark.parametrize("overlay", SERVING)
def test_gateway_grace_period_covers_its_requests(overlay):
    pod = pod_spec(named(overlay, "Deployment", "wan-gateway"))
    gateway = container(overlay, "Deployment/wan-gateway", "gateway")
    command = gateway["command"]
    requests = int(command[command.index("--timeout-graceful-shutdown") + 1])
    wait = int(gateway["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= wait + requests + 10


@pytest.mark.parametrize("overlay", SERVING)
def test_triton_outlives_the_worker(overlay):
    """As a native sidecar: kubelet stops it after the main container, whose running jobs need it."""
    triton = container(overlay, TRITON, "triton")
    assert triton["restartPolicy"] == "Always"
    assert [c["name"] for c in pod_spec(named(overlay, "Deployment", "wan-triton"))["containers"]] == ["worker"]


@pytest.mark.parametrize("overlay", SERVING)
def test_triton_is_not_reachable_from_outside_its_pod(overlay):
    arguments = container(overlay, TRITON, "triton").get("args", [])
    if overlay == "cpu-demo":
        assert not any(a.startswith("--host") for a in arguments)  # the launcher binds to the loopback
    else:
        assert {"--http-address=127.0.0.1", "--grpc-address=127.0.0.1"} <= set(arguments)


@pytest.mark.parametrize("overlay", SERVING)
def test_run_directory_and_shm_are_shared_memory(overlay):
    volumes = {v["name"]: v for v in pod_spec(named(overlay, "Deployment", "wan-triton"))["volumes"]}
    for name in ("run", "shm"):
        assert volumes[name]["emptyDir"]["medium"] == "Memory"
        assert volumes[name]["emptyDir"]["sizeLimit"]
    mounts = [
        {m["name"]: m["mountPath"] for m in container(overlay, TRITON, n)["volumeMounts"]} for n in ("triton", "worker")
    ]
    assert mounts[0]["run"] == mounts[1]["run"] == config(overlay, "wan-settings")["WAN_RUN_DIR"]
    assert mounts[0]["shm"] == "/dev/shm"


@pytest.mark.parametrize("overlay", GPU_SERVING)
def test_gpu_pods_go_to_gpu_nodes(overlay):
    pod = pod_spec(named(overlay, "Deployment", "wan-triton"))
    # The engines run on every GPU of this compute capability, whatever it is called: H100, H200, GH200.
    assert pod["nodeSelector"] == {"nvidia.com/gpu.compute.major": "9", "nvidia.com/gpu.compute.minor": "0"}
    assert any(t["key"] == "nvidia.com/gpu" for t in pod["tolerations"])
    assert pod["topologySpreadConstraints"]
    expected = "8" if overlay == "eight-gpu" else "1"
    assert container(overlay, TRITON, "triton")["resources"]["limits"]["nvidia.com/gpu"] == expected


@pytest.mark.parametrize("overlay", ["one-gpu", "eight-gpu"])
def test_engines_are_built_with_the_image_and_gpu_of_the_servers(overlay):
    job, server = pod_spec(named(f"{overlay}/engines", "Job", "wan-engines")), container(overlay, TRITON, "triton")
    export = job["containers"][0]
    assert export["image"] == server["image"]
    assert job["nodeSelector"] == pod_spec(named(overlay, "Deployment", "wan-triton"))["nodeSelector"]
    assert config(f"{overlay}/engines", "wan-artifacts") == config(overlay, "wan-artifacts")
    assert "$(MODEL_REPOSITORY)" in export["command"]
    assert "--model-repository=$(MODEL_REPOSITORY)" in server["args"]


@pytest.mark.parametrize("overlay", ["one-gpu", "eight-gpu"])
def test_placement_fits_the_gpus_and_the_autoscaler(overlay):
    placement = parse_placement(config(overlay, "wan-artifacts")["PLACEMENT"])
    for spec in (
        container(overlay, TRITON, "triton"),
        container(f"{overlay}/engines", "Job/wan-engines", "export"),
    ):
        assert placement.used == list(range(int(spec["resources"]["limits"]["nvidia.com/gpu"])))
    slots = len(placement.gpus["denoise"])
    if overlay == "eight-gpu":
        metrics = of_kind(overlay, "HorizontalPodAutoscaler")[0]["spec"]["metrics"]
        asked = {m["object"]["metric"]["name"]: m["object"]["target"]["averageValue"] for m in metrics}
        assert asked == {"wan_demand_slots": str(slots), "wan_workers_busy": "1"}
    else:
        triggers = {t["name"]: t["metadata"] for t in of_kind(overlay, "ScaledObject")[0]["spec"]["triggers"]}
        assert triggers["demand"]["threshold"] == triggers["gateway"]["targetValue"] == str(slots)
        assert triggers["busy"]["threshold"] == "1"


@pytest.mark.parametrize("overlay", SERVING)
def test_nothing_is_reachable_without_a_policy(overlay):
    policies = {item["metadata"]["name"]: item["spec"] for item in of_kind(overlay, "NetworkPolicy")}
    deny = policies["wan-default-deny"]
    assert set(deny["policyTypes"]) == {"Ingress", "Egress"}
    assert "ingress" not in deny
    assert "egress" not in deny
    for workload in of_kind(overlay, *WORKLOADS):
        labels = workload["spec"]["template"]["metadata"]["labels"]
        assert deny["podSelector"]["matchLabels"].items() <= labels.items()
    excepted = [b["ipBlock"]["except"] for rule in policies["wan-outside"]["egress"] for b in rule["to"]]
    assert excepted == [["169.254.0.0/16"]]


@pytest.mark.parametrize("overlay", SERVING)
def test_disruptions_take_one_pod_at_a_time(overlay):
    budgets = {item["metadata"]["name"]: item["spec"] for item in of_kind(overlay, "PodDisruptionBudget")}
    for name in ("wan-gateway", "wan-triton"):
        assert budgets[name]["maxUnavailable"] == 1
        assert budgets[name]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


@pytest.mark.parametrize("overlay", GPU_SERVING)
def test_the_autoscaler_owns_the_number_of_replicas(overlay):
    assert "replicas" not in named(overlay, "Deployment", "wan-triton")["spec"]
    assert len(of_kind(overlay, "HorizontalPodAutoscaler", "ScaledObject")) == 1


@pytest.mark.parametrize("overlay", ["one-gpu", "spot"])
def test_a_fleet_of_none_needs_no_prometheus_to_start(overlay):
    """KEDA's fallback does nothing at zero replicas: a trigger must see the work without Prometheus."""
    spec = of_kind(overlay, "ScaledObject")[0]["spec"]
    others = [t for t in spec["triggers"] if t["type"] != "prometheus"]
    assert spec["minReplicaCount"] > 0 or others
    service = named(overlay, "Service", "wan-gateway")
    url = f"http://{service['metadata']['name']}.{service['metadata']['namespace']}.svc/metrics"
    assert [t["metadata"]["url"] for t in others] == [url]
    assert [t["metadata"]["format"] for t in others] == ["prometheus"]
    assert [port["port"] for port in service["spec"]["ports"]] == [80]
    policy = next(i["spec"] for i in of_kind(overlay, "NetworkPolicy") if i["metadata"]["name"] == "wan-gateway")
    (source,) = policy["ingress"][0]["from"]
    (named_ones,) = source["namespaceSelector"]["matchExpressions"]
    assert (named_ones["key"], named_ones["operator"]) == ("kubernetes.io/metadata.name", "In")
    assert {"keda", "monitoring"} <= set(named_ones["values"])


@pytest.mark.parametrize("overlay", ["one-gpu", "spot"])
def test_the_autoscaler_looks_at_its_own_namespace(overlay, tmp_path):
    shutil.copytree(K8S, tmp_path / "k8s")
    kustomization = tmp_path / "k8s/overlays" / overlay / "kustomization.yaml"
    kustomization.write_text(kustomization.read_text().replace("namespace: wan\n", "namespace: another\n"))
    scaled = next(i for i in render(str(tmp_path / "k8s/overlays" / overlay)) if i["kind"] == "ScaledObject")
    assert scaled["metadata"]["namespace"] == "another"
    triggers = {t["name"]: t["metadata"] for t in scaled["spec"]["triggers"]}
    assert triggers["demand"]["query"] == 'max(wan_demand_slots{namespace="another",model="wan"})'
    assert triggers["busy"]["query"] == (
        'max(avg_over_time(wan_workers{namespace="another",model="wan",state="busy"}[5m]))'
    )
    assert triggers["gateway"]["url"] == "http://wan-gateway.another.svc/metrics"
