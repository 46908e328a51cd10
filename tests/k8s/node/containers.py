"""A container of a rendered pod as runc's bundle: its user, capabilities, system calls, mounts, memory and environment."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from tests.k8s.node.images import Image
from tests.k8s.node.volumes import Volumes, quantity

# What containerd hides from, and shows read-only to, every container that is not privileged.
MASKED = [
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/sys/firmware",
]
READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
SECCOMP = Path("/usr/share/containers/seccomp.json")  # of golang-github-containers-common
# What that profile leaves to capabilities and containerd's own refuses without them; glibc does without clone3.
REFUSED = {
    "add_key", "bpf", "chroot", "clone3", "fsconfig", "fsmount", "fsopen", "fspick", "keyctl", "mount",
    "mount_setattr", "move_mount", "open_tree", "perf_event_open", "pivot_root", "quotactl", "quotactl_fd",
    "reboot", "request_key", "setdomainname", "sethostname", "setns", "swapoff", "swapon", "syslog", "umount",
    "umount2", "unshare",
}  # fmt: skip
BEFORE_VOLUMES = [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
    {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
    {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
    {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
]  # fmt: skip


@dataclass(frozen=True)
class Place:
    """What the containers of one pod share."""

    pod: dict  # its spec
    fields: dict[str, str]  # what fieldRef may ask for
    volumes: Volumes
    network: str  # path of its namespace
    files: dict[str, Path]  # /etc/hosts and others that kubelet writes


def environment(spec: dict, image: Image, place: Place) -> dict[str, str]:
    """Of the image, then envFrom, then env; $(NAME) stands for what was defined before."""
    found = dict(image.environment)
    for source in spec.get("envFrom", []):
        kind, what = next(iter(source.items()))
        data = place.volumes.data({"configMapRef": "ConfigMap", "secretRef": "Secret"}[kind], what["name"])
        found |= {key: value.decode() for key, value in data.items()}
    for entry in spec.get("env", []):
        if "value" in entry:
            found[entry["name"]] = expanded(entry["value"], found)
        else:
            found[entry["name"]] = place.fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
    return found


def expanded(text: str, values: dict[str, str]) -> str:
    return re.sub(r"\$\((\w+)\)", lambda match: values.get(match[1], match[0]), text)


def bundle(spec: dict, image: Image, place: Place, cgroup: str) -> dict:
    """The config.json of the container; what the check cannot imitate is refused."""
    security = place.pod["securityContext"] | spec["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not security["privileged"]
    variables = environment(spec, image, place)
    command = (
        [*spec["command"], *spec.get("args", [])] if "command" in spec else [*image.command, *spec.get("args", [])]
    )
    limits = spec["resources"]["limits"]
    return {
        "ociVersion": "1.0.0",
        "hostname": place.fields["metadata.name"],
        "root": {"path": str(image.root), "readonly": security["readOnlyRootFilesystem"]},
        "process": {
            "terminal": False,
            "user": {"uid": security["runAsUser"], "gid": security["runAsGroup"], "additionalGids": [security["fsGroup"]]},
            "args": [expanded(word, variables) for word in command],
            "env": [f"{key}={value}" for key, value in variables.items()],
            "cwd": spec.get("workingDir", image.folder),
            "capabilities": {kind: [] for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")},
            "noNewPrivileges": not security["allowPrivilegeEscalation"],
        },
        "mounts": [*BEFORE_VOLUMES, *mounts(spec, place)],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")] + [{"type": "network", "path": place.network}],
            "cgroupsPath": cgroup,
            "resources": {
                "memory": {"limit": int(quantity(limits["memory"]))},
                "cpu": {"period": 100_000, "quota": int(100_000 * quantity(limits["cpu"]))},
            },
            "seccomp": system_calls(),
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
        },
    }  # fmt: skip


def mounts(spec: dict, place: Place) -> list[dict]:
    shown = [
        (mount["mountPath"], place.volumes.source(mount), mount.get("readOnly", False))
        for mount in spec["volumeMounts"]
    ]
    shown += [(path, source, False) for path, source in place.files.items()]
    # A mount inside another one comes after it.
    return [{"destination": path, "source": str(source), "type": "bind", "options": ["rbind", "ro" if read_only else "rw"]}
            for path, source, read_only in sorted(shown)]  # fmt: skip


def system_calls() -> dict:
    """The default profile of containers for a container without capabilities, in the runtime's form."""
    profile = json.loads(SECCOMP.read_text())
    rules = []
    for rule in profile["syscalls"]:
        only, but = rule.get("includes", {}), rule.get("excludes", {})
        if only.get("caps") or "amd64" not in only.get("arches", ["amd64"]) or "amd64" in but.get("arches", []):
            continue
        kept = {key: rule[key] for key in ("names", "action", "args", "errnoRet") if rule.get(key) is not None}
        if rule["action"] == "SCMP_ACT_ALLOW":
            kept["names"] = [name for name in rule["names"] if name not in REFUSED]
        rules += [kept] if kept["names"] else []
    return {
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": rules,
    }
