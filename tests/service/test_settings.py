"""Settings come from WAN_ variables; a bad one stops the start."""

import pytest

from service.errors import SettingsError
from service.settings import load_settings


def test_defaults_need_no_environment(tmp_path):
    settings = load_settings(state_dir=tmp_path)
    assert settings.database == f"sqlite:///{tmp_path}/jobs.db"
    assert settings.storage == str(tmp_path / "videos")


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("WAN_LEASE_SECONDS", "soon", "a valid number"),
        ("WAN_MAX_ATTEMPTS", "0", "greater than or equal to 1"),
        ("WAN_DATABASE_URL", "mysql://x", "sqlite:///PATH or postgresql"),
        ("WAN_LOG_LEVEL", "loud", "'DEBUG', 'INFO'"),
    ],
)
def test_a_bad_value_names_key_value_and_what_is_allowed(monkeypatch, key, value, allowed):
    monkeypatch.setenv(key, value)
    with pytest.raises(SettingsError) as error:
        load_settings()
    assert key in str(error.value)
    assert repr(value) in str(error.value)
    assert allowed in str(error.value)


def test_a_missing_model_card_names_its_variable(tmp_path):
    with pytest.raises(SettingsError, match="WAN_MODEL_CARD"):
        _ = load_settings(model_card=tmp_path / "none.json").card
