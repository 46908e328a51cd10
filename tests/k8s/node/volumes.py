"""The volumes of a pod as kubelet makes them: folders, memory, files of ConfigMaps and Secrets, with the group of the pod."""

import base64
import os
import re
import subprocess
from pathlib import Path

UNITS = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "m": 1e-3}


def quantity(text: str) -> float:
    """`512Mi`, `2` or `100m` as a number."""
    number, unit = re.fullmatch(r"([\d.]+)(\D*)", str(text)).groups()
    return float(number) * UNITS[unit]


class Volumes:
    """All volumes of one pod below `folder`; claims lie below `claims`, where other pods find them too."""

    def __init__(self, pod: dict, objects: list[dict], folder: Path, claims: Path):
        self.group = pod["securityContext"]["fsGroup"]
        self.objects, self.claims = objects, claims
        self.disks: dict[Path, float] = {}  # emptyDir on disk -> sizeLimit in bytes
        self.memory: list[Path] = []
        self.path = {volume["name"]: self._make(volume, folder / volume["name"]) for volume in pod["volumes"]}

    def _make(self, volume: dict, path: Path) -> Path:
        kind = next(key for key in volume if key != "name")
        what = volume[kind]
        if kind == "persistentVolumeClaim":
            path = self.claims / what["claimName"]
        path.mkdir(parents=True, exist_ok=True)
        if kind == "emptyDir":
            self._empty(path, what)
        elif kind in ("configMap", "secret"):
            self._files(path, [{kind: what | {"name": what.get("name", what.get("secretName"))}}], what)
        elif kind == "projected":
            self._files(path, what["sources"], what)
        elif kind != "persistentVolumeClaim":
            raise NotImplementedError(f"volume {volume['name']} is of kind {kind}")
        if kind in ("emptyDir", "persistentVolumeClaim"):
            os.chown(path, 0, self.group)
            path.chmod(0o2777 if kind == "emptyDir" else 0o2775)
        return path

    def _empty(self, path: Path, what: dict) -> None:
        if what.get("medium") == "Memory":
            size = int(quantity(what["sizeLimit"]))
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], check=True)
            self.memory.append(path)
        else:
            self.disks[path] = quantity(what["sizeLimit"])

    def _files(self, path: Path, sources: list[dict], volume: dict) -> None:
        """Files are links to links, because kubelet exchanges them all at once."""
        real = path / "..files"
        real.mkdir()
        (path / "..data").symlink_to("..files")
        for source in sources:
            kind, what = next(iter(source.items()))
            for name, value in self._chosen(kind, what).items():
                (real / name).write_bytes(value)
                (real / name).chmod(volume.get("defaultMode", 0o644) | 0o040)
                os.chown(real / name, 0, self.group)
                (path / name).symlink_to(f"..data/{name}")

    def _chosen(self, kind: str, what: dict) -> dict[str, bytes]:
        data = self.data(
            {"configMap": "ConfigMap", "secret": "Secret"}[kind], what["name"], what.get("optional", False)
        )
        items = {item["key"]: item["path"] for item in what["items"]} if "items" in what else {key: key for key in data}
        return {path: data[key] for key, path in items.items()}

    def data(self, kind: str, name: str, optional: bool = False) -> dict[str, bytes]:
        """What a ConfigMap or Secret of the overlay holds."""
        for item in self.objects:
            if item["kind"] == kind and item["metadata"]["name"] == name:
                plain = {key: value.encode() for key, value in (item.get("data") or {}).items()}
                return plain if kind == "ConfigMap" else {key: base64.b64decode(v) for key, v in plain.items()}
        assert optional, f"{kind} {name} is not among the objects"
        return {}

    def source(self, mount: dict) -> Path:
        """What a container's volumeMount shows; a subPath that is missing is made as its volume is."""
        path = self.path[mount["name"]]
        if inner := mount.get("subPath"):
            made = path / inner
            if not made.exists():
                made.mkdir()
                made.chmod(path.stat().st_mode & 0o7777)
            return made
        return path

    def over_their_limit(self) -> dict[str, float]:
        """Disk volumes for which kubelet would evict the pod, with the bytes in them."""
        used = {path: sum(f.lstat().st_blocks * 512 for f in path.rglob("*")) for path in self.disks}
        return {path.name: size for path, size in used.items() if size > self.disks[path]}

    def remove(self) -> None:
        for path in self.memory:
            subprocess.run(["umount", str(path)], check=True)
