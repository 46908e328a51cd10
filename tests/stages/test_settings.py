import os

import pytest

from stages.settings import SettingsError, load_settings, threads


def test_defaults_need_no_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("WAN_")]:
        monkeypatch.delenv(name)
    settings = load_settings()
    assert settings.run_dir is None
    assert settings.checkpoint_seconds == 5
    assert settings.device == "cpu"


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("WAN_CHECKPOINT_SECONDS", "0", "greater than 0"),
        ("WAN_CHECKPOINT_SECONDS", "often", "a valid number"),
        ("WAN_DENOISE_THREADS", "-1", "greater than or equal to 0"),
        ("WAN_DEVICE", "gpu", "match pattern"),
        ("WAN_MAX_VIDEO_BYTES", "1.5", "a valid integer"),
        ("WAN_ATTENTION", "fast", "'auto', 'auto-8bit'"),
        ("WAN_LINEAR", "fp4", "'auto', 'dense', 'onednn', 'fp8' or 'fp8-fast'"),
        ("WAN_WARM_SIZES", "832x480", "WIDTHxHEIGHTxFRAMES"),
    ],
)
def test_a_bad_value_names_the_variable_the_value_and_what_is_allowed(monkeypatch, name, value, allowed):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"{name} is '{value}'; allowed: .*{allowed}"):
        load_settings()


def test_sizes_to_warm_are_a_list_in_one_variable(monkeypatch):
    monkeypatch.setenv("WAN_WARM_SIZES", "832x480x81, 480x832x81")
    assert load_settings().warm_sizes == ((832, 480, 81), (480, 832, 81))


def test_zero_threads_are_all_cores_that_this_process_may_use():
    assert threads(0) == len(os.sched_getaffinity(0))
    assert threads(3) == 3
