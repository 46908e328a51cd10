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
        ("WAN_WEBHOOK_PORTS", "https", "pattern"),
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


def test_secrets_are_read_from_files_and_the_environment_goes_first(tmp_path, monkeypatch):
    (tmp_path / "WAN_WEBHOOK_SECRET").write_text("from a file\n")
    (tmp_path / "WAN_LOG_LEVEL").write_text("ERROR")
    monkeypatch.setenv("WAN_SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("WAN_LOG_LEVEL", "DEBUG")
    settings = load_settings()
    assert (settings.webhook_secret, settings.log_level) == ("from a file", "DEBUG")


def test_a_missing_folder_of_secrets_stops_the_start(tmp_path, monkeypatch):
    monkeypatch.setenv("WAN_SECRETS_DIR", str(tmp_path / "none"))
    with pytest.raises(SettingsError, match="WAN_SECRETS_DIR is '.*none'; allowed: an existing folder"):
        load_settings()


def test_a_bad_secret_names_its_setting(tmp_path, monkeypatch):
    (tmp_path / "WAN_DATABASE_URL").write_text("mysql://x")
    monkeypatch.setenv("WAN_SECRETS_DIR", str(tmp_path))
    with pytest.raises(SettingsError, match="WAN_DATABASE_URL"):
        load_settings()
