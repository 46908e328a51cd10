import hashlib

import pytest

from stages.artifacts import ArtifactError
from stages.trt_plans import check_content, check_plan

PLAN = {
    "tensorrt": "10.14.1.48.post1", "compute_capability": "9.0", "gpu": "NVIDIA H100 80GB HBM3",
    "options": {"version_compatible": False, "hardware_compatibility": "none"}, "profiles": [],
}  # fmt: skip
COMMAND = "run: python -m export M --target gpu"


def _with(**options) -> dict:
    return PLAN | {"options": PLAN["options"] | options}


@pytest.mark.parametrize(("plan", "version", "capability"), [
    (PLAN, "10.14.1", (9, 0)),
    (_with(version_compatible=True), "10.16.1.11", (9, 0)),
    (_with(hardware_compatibility="ampere_plus"), "10.14.1.48", (8, 6)),
    (_with(hardware_compatibility="same_compute_capability"), "10.14.1.48", (9, 0)),
])  # fmt: skip
def test_plans_that_fit_pass(plan, version, capability):
    check_plan("vae_decoder/next.plan", plan, version, capability, COMMAND)


@pytest.mark.parametrize(("plan", "version", "capability", "message"), [
    (PLAN, "10.13.3.9", (9, 0), "built with TensorRT 10.14.1.48.post1, this machine has 10.13.3.9"),
    (_with(version_compatible=True), "11.4.0.106", (9, 0), "this machine has 11.4.0.106"),
    (_with(version_compatible=True), "10.13.3.9", (9, 0), "this machine has 10.13.3.9"),
    (PLAN, "10.14.1.48", (8, 0), r"compute capability 9.0 \(NVIDIA H100 80GB HBM3\), this GPU has 8.0"),
    (_with(hardware_compatibility="ampere_plus"), "10.14.1.48", (7, 5), "this GPU has 7.5"),
])  # fmt: skip
def test_stale_and_foreign_plans_are_refused_with_the_command_that_rebuilds(plan, version, capability, message):
    with pytest.raises(ArtifactError, match=message) as error:
        check_plan("vae_decoder/next.plan", plan, version, capability, COMMAND)
    assert str(error.value).endswith(COMMAND)


def test_a_plan_with_other_content_is_refused(tmp_path):
    path = tmp_path / "next.plan"
    path.write_bytes(b"plan")
    check_content(path, {"sha256": hashlib.sha256(b"plan").hexdigest()}, COMMAND)
    with pytest.raises(ArtifactError, match=r"next.plan is not the plan that the manifest describes.*python -m export"):
        check_content(path, {"sha256": hashlib.sha256(b"other").hexdigest()}, COMMAND)
    with pytest.raises(ArtifactError, match=r"gone.plan is missing; run: python"):
        check_content(tmp_path / "gone.plan", {"sha256": ""}, COMMAND)
