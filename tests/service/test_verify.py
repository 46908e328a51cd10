from service import verify
from service.storage import Storage
from service.store import JobStore
from tests.service.running import over, settings_for, submit, until, worker


def test_a_changed_or_lost_video_is_found_and_made_again_with_the_same_frames(tmp_path, monkeypatch, capsys):
    settings = settings_for(tmp_path)
    monkeypatch.setenv("WAN_STATE_DIR", str(tmp_path))
    store, files = JobStore.from_settings(settings), Storage(settings.storage)
    with worker(settings):
        jobs = [over(store, submit(store, prompt=str(number))) for number in range(3)]
        assert verify.main([]) == 0
        changed, lost, sound = jobs
        path = tmp_path / "videos" / changed.video_key
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        files.delete(lost.video_key)
        assert verify.main([sound.id]) == 0
        capsys.readouterr()
        assert verify.main(["--remake"]) == 1
        said = capsys.readouterr().out
        assert f"{changed.id}: its bytes have changed; it is made again" in said
        assert f"{lost.id}: it is no longer stored; it is made again" in said
        assert "3 videos, 2 not sound" in said
        for job in (changed, lost):
            until(lambda job=job: store.get(job.id).status == "completed")
            again = store.get(job.id)
            assert (again.fence, again.info["frames_sha256"]) == (2, job.info["frames_sha256"])
        assert verify.main([]) == 0
    store.close()
