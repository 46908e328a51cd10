"""`python -m loadtest faults`: kills each part of the real service at points of a job's life, and checks that nothing is lost.

For every victim and every point: submit a job, wait until it got that far, kill -9, wait for the video. Verdict per case:
the job completed, exactly one result was published, its frames are those of an uninterrupted run bit by bit, and at most one
checkpoint interval was computed twice. With `--image FILE --checkpoint models/tiny-i2v --repository build/repository-tiny-i2v`
each job begins with a picture. Exit code 1 if any case fails.
"""

import argparse
import base64
import contextlib
import json
import mimetypes
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import psutil

from contract.parameters import LOSSLESS
from loadtest.base.databases import Postgres
from service import options
from service.stack import ROOT, Stack

VICTIMS = ("worker", "triton", "stub", "gateway", "database")
CHECKPOINT_SECONDS = 0.5
SLACK_SECONDS = 1.5  # a checkpoint is noticed and stored a little later than it is written
REQUEST = {
    "prompt": "a red circle moves left on a black background",
    "seed": 11,
    "width": 64,
    "height": 64,
    "num_frames": 17,
    **LOSSLESS,  # every step takes its time
}


@dataclass
class Case:
    """What happened in one case."""

    victim: str
    point: float
    status: str = ""
    attempts: int = 0
    killed_at_step: int = 0
    resumed_from: int | None = None
    recomputed_seconds: float = 0.0
    seconds: float = 0.0
    problem: str | None = None


class Drill:
    """One stack under fire. `steps` slow the tiny model down."""

    def __init__(self, stack: Stack, steps: int, postgres: Postgres | None = None, image: Path | None = None):
        self.stack, self.steps, self.postgres = stack, steps, postgres
        self.media = {"image": data_url(image)} if image else {}
        self.http = httpx.Client(base_url=stack.url, timeout=10)
        self.reference: dict = {}

    def call(self, method: str, path: str, **more) -> httpx.Response:
        """A request that is repeated while the gateway or the database is away, as a good client does."""
        deadline = time.monotonic() + 90
        while True:
            try:
                answer = self.http.request(method, path, **more)
                if answer.status_code < 500:
                    return answer.raise_for_status()
                reason: object = answer.text
            except (httpx.TransportError, httpx.RemoteProtocolError) as error:
                reason = error
            if time.monotonic() > deadline:
                raise TimeoutError(f"{method} {path}: {reason}")
            time.sleep(0.1)

    def submit(self, name: str) -> str:
        body = REQUEST | {"steps": self.steps} | self.media
        return self.call("POST", "/v1/videos", json=body, headers={"Idempotency-Key": name}).json()["id"]

    def video(self, job_id: str) -> dict:
        return self.call("GET", f"/v1/videos/{job_id}").json()

    def until(self, job_id: str, check: Callable[[dict], bool], seconds: float = 240) -> dict:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            video = self.video(job_id)
            if check(video):
                return video
            time.sleep(0.05)
        raise TimeoutError(
            f"{job_id} is {video['status']}, phase {video['phase']}, step {video['step']} after {seconds:g} s"
        )

    def learn_reference(self) -> None:
        """The frames and the step time of an undisturbed run."""
        video = self.until(self.submit(f"reference-{time.time()}"), is_over)
        if video["status"] != "completed":
            raise RuntimeError(f"the reference run {video['status']}: {video['error']}")
        self.reference = video

    def run(self, victim: str, point: float) -> Case:
        """One case; `point` is the share of the steps after which the victim dies."""
        case, began = Case(victim, point), time.monotonic()
        try:
            job_id = self.submit(f"{victim}-{point}-{time.time()}")
            step = int(point * self.steps)
            reached = self.until(job_id, lambda video: is_over(video) or video["step"] >= step)
            case.killed_at_step = reached["step"]
            getattr(self, f"kill_{victim}")()
            self.judge(case, self.until(job_id, is_over))
        except Exception as error:  # a case that cannot be judged is a failed case
            case.problem = f"{type(error).__name__}: {error}"
        case.seconds = round(time.monotonic() - began, 1)
        return case

    def judge(self, case: Case, video: dict) -> None:
        case.status, case.attempts, case.resumed_from = video["status"], video["attempts"], video["resumed_from"]
        if video["status"] != "completed":
            case.problem = f"{video['status']}: {video['error']}"
            return
        files = [path.name for path in (self.stack.state / "videos" / video["id"]).glob("*.mp4")]
        step_seconds = self.reference["stage_durations"]["denoise"] / self.steps
        again = max(0, case.killed_at_step - (video["resumed_from"] or 0)) if video["resumed_from"] is not None else 0
        case.recomputed_seconds = round(again * step_seconds, 2)
        if video["frames_sha256"] != self.reference["frames_sha256"]:
            case.problem = "the frames differ from the uninterrupted run"
        elif len(files) != 1:
            case.problem = f"{len(files)} results are stored: {files}"
        elif case.recomputed_seconds > CHECKPOINT_SECONDS + SLACK_SECONDS:
            case.problem = f"{case.recomputed_seconds} s were computed twice; the interval is {CHECKPOINT_SECONDS} s"

    def completed(self) -> int:
        """How many jobs the service says it completed."""
        lines = self.call("GET", "/metrics").text.splitlines()
        return int(
            float(next(line for line in lines if line.startswith('wan_jobs_total{status="completed"}')).split()[1])
        )

    # --- the kills; whatever supervises the part starts it again

    def kill_worker(self) -> None:
        os.kill(self.stack.children["worker-0"].process.pid, signal.SIGKILL)

    def kill_gateway(self) -> None:
        parent = psutil.Process(self.stack.children["gateway"].process.pid)
        for process in [*parent.children(recursive=True), parent]:
            process.kill()

    def kill_triton(self) -> None:
        mine = psutil.Process().children(recursive=True)
        next(process for process in mine if "tritonserver" in process.name()).kill()

    def kill_stub(self) -> None:
        next(stub for stub in self.stack.server.stubs if "denoise" in stub.instance).process.kill()

    def kill_database(self) -> None:
        if self.postgres is None:
            raise ValueError("a drill without PostgreSQL cannot kill it")
        self.postgres.kill()
        time.sleep(1)
        self.postgres.start()


def data_url(file: Path) -> str:
    kind = mimetypes.guess_type(file.name)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def is_over(video: dict) -> bool:
    return video["status"] in ("completed", "failed", "cancelled")


@contextlib.contextmanager
def under_fire(
    repository: Path,
    steps: int,
    with_database: bool = True,
    image: Path | None = None,
    more: dict[str, str] | None = None,
) -> Iterator[Drill]:
    """A running stack whose jobs are in PostgreSQL if that shall be killed too, with its reference run made; `more` settings."""
    postgres = Postgres() if with_database else None
    environment = {
        "WAN_LEASE_SECONDS": "3",
        "WAN_HEARTBEAT_SECONDS": "0.5",
        "WAN_CHECKPOINT_SECONDS": str(CHECKPOINT_SECONDS),
        "WAN_DATABASE_URL": postgres.url() if postgres else "",
        **(more or {}),
    }
    try:
        with (
            tempfile.TemporaryDirectory(prefix="wan-faults-") as folder,
            Stack(repository, Path(folder), environment=environment) as stack,
        ):
            drill = Drill(stack, steps, postgres, image)
            drill.learn_reference()
            yield drill
    finally:
        if postgres is not None:
            postgres.stop()


def run_all(drill: Drill, victims: list[str], points: int, say: Callable[[str], None]) -> list[Case]:
    """Every victim at every point; a last case compares the number of completions with the service's own count."""
    cases = []
    say(f"reference: {drill.steps} steps in {drill.reference['stage_durations']['denoise']:.1f} s")
    before = drill.completed()
    for victim in victims:
        for number in range(points):
            case = drill.run(victim, (number + 0.5) / points)
            cases.append(case)
            say(f"{'FAIL' if case.problem else 'ok'}  {json.dumps(asdict(case), ensure_ascii=False)}")
    counted, wanted = drill.completed() - before, sum(case.status == "completed" for case in cases)
    if counted != wanted:
        cases.append(Case("all", 1.0, problem=f"{wanted} jobs completed, {counted} completions were counted"))
    return cases


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=list(VICTIMS))
    parser.add_argument("--points", type=int, default=10, help="points of a job's life for each victim")
    parser.add_argument("--steps", type=int, default=400, help="denoise steps of each job")
    parser.add_argument("--repository", type=Path, default=ROOT / "build/repository")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "models/tiny")
    parser.add_argument("--image", type=Path, help="the picture that each job begins with, if the model takes one")


def handle(given: argparse.Namespace) -> int:
    options.serve_model(given.checkpoint, given.repository)
    with under_fire(given.repository, given.steps, "database" in given.victims, given.image) as drill:
        cases = run_all(drill, given.victims, given.points, lambda text: print(text, flush=True))
    failed = [case for case in cases if case.problem]
    lost = [case for case in cases if case.status != "completed"]
    print(f"{len(cases)} cases: {len(cases) - len(failed)} ok, {len(failed)} failed, {len(lost)} jobs lost")
    return 1 if failed else 0
