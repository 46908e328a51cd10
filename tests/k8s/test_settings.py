"""Every WAN_ key of the manifests is a setting that a program reads, with a value that it accepts."""

import pytest

from service.settings import Settings, load_settings
from stages.settings import StageSettings
from stages.settings import load_settings as load_stage_settings
from tests.k8s.rendering import OPERATORS_SECRETS, SERVING, config, containers, of_kind


def environment(overlay: str, spec: dict) -> dict[str, str]:
    """The variables of a container as kubelet would set them; values from fields and operators' secrets are made up."""
    sources = {(i["kind"], i["metadata"]["name"]): i for i in of_kind(overlay, "ConfigMap", "Secret")}
    sources |= {("Secret", name): {"data": keys} for name, keys in OPERATORS_SECRETS.items()}
    values = {}
    for source in spec.get("envFrom", []):
        kind = "ConfigMap" if "configMapRef" in source else "Secret"
        item = sources[(kind, next(iter(source.values()))["name"])]
        values |= item.get("data", {}) if kind == "ConfigMap" else dict.fromkeys(item["data"], "secret")
    for variable in spec.get("env", []):
        values[variable["name"]] = variable.get("value") or "wan-triton-7d9c5b7f6-x2x7k"
    return values


@pytest.fixture
def secrets_dir(tmp_path):
    """What the volume `secrets` of gateway and worker holds."""
    (tmp_path / "WAN_DATABASE_URL").write_text("postgresql://wan:secret@db:5432/wan\n")
    (tmp_path / "WAN_WEBHOOK_SECRET").write_text("whsec_c2VjcmV0")
    return tmp_path


@pytest.fixture
def no_wan_variables(monkeypatch):
    import os

    for name in [name for name in os.environ if name.startswith("WAN_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("overlay", SERVING)
def test_every_key_is_known_and_every_value_accepted(overlay, monkeypatch, no_wan_variables, secrets_dir):
    known = {f"WAN_{name.upper()}" for name in {**Settings.model_fields, **StageSettings.model_fields}}
    for each in containers(overlay):
        values = {k: v for k, v in environment(overlay, each.spec).items() if k.startswith("WAN_")}
        assert set(values) <= known, each
        if "WAN_SECRETS_DIR" in values:
            values["WAN_SECRETS_DIR"] = str(secrets_dir)
        with monkeypatch.context() as patch:
            for name, value in values.items():
                patch.setenv(name, value)
            settings = load_settings()
            load_stage_settings()
            from_files = (settings.database_url != "", settings.webhook_secret != "")
            assert from_files == ("WAN_SECRETS_DIR" in values,) * 2


@pytest.mark.parametrize("overlay", SERVING)
def test_stage_and_worker_agree_on_the_run_directory(overlay):
    programs = {each.spec["name"]: environment(overlay, each.spec) for each in containers(overlay)}
    assert programs["triton"]["WAN_RUN_DIR"] == programs["worker"]["WAN_RUN_DIR"]


@pytest.mark.parametrize("overlay", SERVING)
def test_worker_metrics_are_served_where_prometheus_looks(overlay):
    worker = next(each.spec for each in containers(overlay) if each.spec["name"] == "worker")
    port = next(p["containerPort"] for p in worker["ports"] if p["name"] == "worker-metrics")
    assert config(overlay, "wan-settings")["WAN_WORKER_METRICS_PORT"] == str(port)


@pytest.mark.parametrize("overlay", SERVING)
def test_nothing_is_written_to_the_read_only_root(overlay):
    """State, caches and temporary files go to a mounted volume."""
    for each in containers(overlay):
        mounts = tuple(mount["mountPath"] for mount in each.spec.get("volumeMounts", []))
        values = environment(overlay, each.spec)
        for name in (
            "WAN_STATE_DIR",
            "WAN_RUN_DIR",
            "HOME",
            "BENTOML_HOME",
            "WAN_COMPILE_DIR",
        ):
            path = values.get(name, "/tmp")
            used = name != "WAN_RUN_DIR" or each.spec["name"] in ("worker", "triton")
            assert not used or path.startswith(mounts), (str(each), name, path)


@pytest.mark.parametrize("overlay", SERVING)
def test_compiled_blocks_outlive_the_pod(overlay):
    triton = next(each.spec for each in containers(overlay) if each.spec["name"] == "triton")
    kept = environment(overlay, triton)["WAN_COMPILE_DIR"]
    mount = next(m for m in triton["volumeMounts"] if kept.startswith(m["mountPath"]))
    assert mount["name"] == "repository"
    assert not mount.get("readOnly")
