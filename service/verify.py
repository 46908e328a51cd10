"""`python -m service.verify [--remake] [ID …]`: are the stored videos what the workers stored? With the service's settings.

Compares each completed video with the SHA-256 that was noted when it was made. With `--remake` those that are lost or changed
are made again from their requests; the same request gives the same frames. Exit status 1 while any is not sound.
"""

import argparse
import hashlib
import sys

from service.errors import NotFound, ServiceError
from service.settings import load_settings
from service.storage import Storage
from service.store import Job, JobStore
from service.store.jobs import COMPLETED


def problem(job: Job, files: Storage) -> str | None:
    """What is wrong with the stored video; StorageError when the store cannot say."""
    wanted = (job.info or {}).get("video_sha256")
    digest = hashlib.sha256()
    try:
        key, _ = job.video
        size = files.size(key)
        for piece in files.read(key, 0, size):
            digest.update(piece)
    except NotFound:
        return "it is no longer stored"
    if size != job.video_bytes:
        return f"it has {size} bytes instead of {job.video_bytes}"
    return "its bytes have changed" if wanted and digest.hexdigest() != wanted else None


def completed(store: JobStore, ids: list[str]) -> list[Job]:
    if ids:
        return [job for job in map(store.get, ids) if job.status == COMPLETED]
    found, after, more = [], None, True
    while more:
        page, more = store.page(None, after, 100)
        found += [job for job in page if job.status == COMPLETED]
        after = page[-1].id if page else None
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m service.verify", description=__doc__.split("\n")[0])
    parser.add_argument("ids", nargs="*", metavar="ID", help="videos (default: all completed ones)")
    parser.add_argument("--remake", action="store_true", help="make unsound videos again")
    given = parser.parse_args(arguments)
    try:
        settings = load_settings()
        store, files = JobStore.from_settings(settings), Storage(settings.storage, settings.storage_endpoint_url)
        jobs = completed(store, given.ids)
        wrong = 0
        for job in jobs:
            if (reason := problem(job, files)) is not None:
                wrong += 1
                if given.remake:
                    store.remake(job.id)
                print(f"{job.id}: {reason}{'; it is made again' if given.remake else ''}")
        print(f"{len(jobs)} videos, {wrong} not sound")
        store.close()
    except ServiceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
