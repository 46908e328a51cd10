import psycopg

from loadtest.base import databases


def test_without_a_system_server_the_wheels_serves_even_where_only_nobody_can_run_it(monkeypatch):
    monkeypatch.setattr(databases.shutil, "which", lambda name: None)
    monkeypatch.setattr(databases.Path, "glob", lambda folder, pattern: [])
    monkeypatch.setattr(databases, "_unprivileged_user", lambda: "nobody")
    server = databases.Postgres()
    monkeypatch.undo()
    try:
        assert "pginstall" in server.binaries.parts
        with psycopg.connect(server.url()) as connection:
            (version,) = connection.execute("SHOW server_version_num").fetchone()
        assert int(version) >= 150000
        server.kill()
        server.start()
    finally:
        server.stop()
    assert not server.home.exists()
