"""Every setting of the gateway and the worker: environment variables with the prefix `WAN_`, read once and typed."""

import os
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from contract import traces
from contract.card import ModelCard
from contract.cost import CostModel
from contract.errors import InvalidCard, InvalidRequest
from contract.parallel import ONE_RANK, Degrees
from service.errors import SettingsError, shown

DEFAULT_COSTS = Path(__file__).with_name("cost.json")  # of models/tiny on two cores
Seconds = Annotated[float, Field(gt=0)]


class Settings(BaseSettings):
    """Settings of the service; each field is the environment variable `WAN_<FIELD>`."""

    model_config = SettingsConfigDict(env_prefix="WAN_", extra="ignore")

    # where things are
    state_dir: Path = Path("var")
    database_url: str = ""  # default: sqlite in state_dir
    listen_url: str = (
        ""  # PostgreSQL without a pooler, for LISTEN; default: database_url; "off": poll, as a pooler requires
    )
    storage_url: str = ""  # default: a directory in state_dir; s3://bucket/prefix in a cluster
    storage_endpoint_url: str = ""  # S3-compatible servers other than AWS
    lora_dir: str = (
        ""  # directory or s3://bucket/prefix of the adapters that requests may name; Triton's stages read it too
    )
    run_dir: Path | None = None  # shared with Triton's denoise stage
    triton_url: str = "127.0.0.1:8001"
    metrics_dir: Path | None = None  # worker and gateway of one machine: the gateway's /metrics shows the worker's too

    # the model
    model_name: str = Field("wan", pattern=r"^[A-Za-z0-9._/-]{1,64}$")
    model_card: Path = Path("models/tiny/wan.json")
    cost_file: Path | None = None  # what a request costs here, from python -m wan.cost CHECKPOINT --out FILE
    parallel: str = ""  # as in --placement denoise=GPUS:cfg2xulysses4, where the cost file was measured on one device

    # admission
    max_queued: int = Field(1000, ge=1)
    max_queued_per_key: int = Field(1000, ge=1)
    max_job_gpu_seconds: Seconds = 14400
    policy: Literal["shortest", "fifo", "earliest_deadline"] = "shortest"  # see service/store/policies.py
    ageing: float = Field(2.0, ge=0)  # a job counts as submitted this many seconds later per predicted GPU-second
    priority_ageing_seconds: Seconds = 1800  # after this wait a job is treated one priority higher
    max_body_bytes: int = Field(1_000_000, ge=1024)
    sync_timeout_seconds: Seconds = 14400
    slot_seconds: Seconds = 120  # autoscaling: as much predicted work makes a denoise slot worth having

    # pictures and clips that come with a request, where the model takes them
    max_image_bytes: int = Field(30_000_000, ge=1024)
    max_image_pixels: int = Field(50_000_000, ge=4096)
    max_clip_bytes: int = Field(100_000_000, ge=1024)
    max_clip_pixels: int = Field(9_500_000, ge=4096)  # of a frame
    max_clip_seconds: Seconds = 60
    max_clip_frames: int = Field(1800, ge=1)
    max_uploads: int = Field(8, ge=1)  # at once; their files lie in the folder of TMPDIR
    upload_seconds: Seconds = 600  # for one of them to arrive
    media_at_once: int = Field(2, ge=1)  # pictures and clips that are being read
    fetch_urls: bool = False  # whether a request may name the address of a picture; only public ones are called
    fetch_allow_private: bool = False
    fetch_seconds: Seconds = 20

    # jobs
    max_attempts: int = Field(3, ge=1, le=20)  # that may break on healthy workers before the job is at fault
    max_losses: int = Field(10, ge=1, le=1000)  # attempts in a row without a newer checkpoint, whoever was at fault
    max_preemptions: int = Field(3, ge=0, le=100)  # how often a job makes room for urgent ones; 0: never
    lease_seconds: Seconds = 20
    heartbeat_seconds: Seconds = 3
    retention_seconds: Seconds = 7 * 86400
    storage_retry_seconds: Seconds = 60
    stall_seconds: Seconds = 900  # an attempt without any progress for this long is given up
    drain_seconds: float = Field(60, ge=0)  # how long a stopping worker lets its jobs run on before it hands them over
    handover_seconds: Seconds = 45  # how long handing over may take, whatever is away

    # worker
    worker_id: str = Field(
        "", pattern=r"^[A-Za-z0-9._-]{0,64}$"
    )  # default: host-pid-random; no two live workers may share one: a worker that starts ends the leases of its name
    node: str = ""  # where the worker runs, for the history of attempts; default: the host's name
    sick_after: int = Field(2, ge=1, le=100)  # attempts in a row that break before the worker has to prove itself
    slots: int = Field(0, ge=0, le=64)  # 0: as many as Triton has denoise instances
    worker_metrics_port: int = Field(0, ge=0, le=65535)  # 0: off

    # safety
    secrets_dir: Path | None = None  # a folder with a file WAN_<FIELD> for each setting that no environment should show
    api_keys: str = ""  # "name:sha256,name:sha256"
    api_keys_file: Path | None = None  # JSON list, see service/apikeys.py
    requests_per_minute: int = Field(0, ge=0)  # per key, at all gateways together; 0: no limit
    gpu_seconds_per_day: float = Field(0, ge=0)  # budget of a key that has none of its own; 0: no limit
    key_metrics: bool = False  # whether /metrics, which needs no key, tells what each key used
    wrong_keys_per_minute: int = Field(20, ge=1)  # from one client address, see service/api/guessing.py
    max_streams: int = Field(2000, ge=1)  # event streams of one gateway; a key may hold half of them
    webhook_secret: str = ""
    webhook_allow_private: bool = False
    webhook_ports: str = Field(
        "", pattern=r"^(\d{1,5}(,\d{1,5})*)?$"
    )  # "443,8443": what the network lets through; "": any
    webhook_attempts: int = Field(8, ge=1, le=20)
    log_prompts: bool = False
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    otlp_endpoint: str = ""  # "http://collector:4318": traces go there by OTLP/HTTP, of Triton's stages too; "": off

    @field_validator("otlp_endpoint")
    @classmethod
    def _traceable(cls, value: str) -> str:
        return traces.check(value)

    @field_validator("database_url")
    @classmethod
    def _known_engine(cls, value: str) -> str:
        if value and not value.startswith(("sqlite:///", "postgresql://", "postgresql+psycopg://")):
            raise ValueError("sqlite:///PATH or postgresql://USER@HOST/NAME")
        return value

    @cached_property
    def card(self) -> ModelCard:
        """What Triton serves: its geometry and its defaults."""
        try:
            return ModelCard.load(self.model_card)
        except InvalidCard as error:
            raise SettingsError(
                f"WAN_MODEL_CARD is {str(self.model_card)!r}: {error}; allowed: the path of a card.json or wan.json"
            ) from None

    @cached_property
    def costs(self) -> CostModel:
        """What a request costs on the machines that serve."""
        path = self.cost_file or DEFAULT_COSTS
        try:
            return CostModel.load(path, Degrees.parse(self.parallel) if self.parallel else ONE_RANK)
        except InvalidRequest as error:
            raise SettingsError(f"WAN_PARALLEL is {self.parallel!r}; allowed: {error.allowed}") from None
        except InvalidCard as error:
            raise SettingsError(f"WAN_COST_FILE is {str(path)!r}: {error}") from None

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.state_dir.absolute()}/jobs.db"

    @property
    def storage(self) -> str:
        return self.storage_url or str(self.state_dir.absolute() / "videos")

    @property
    def ports(self) -> tuple[int, ...]:
        """Ports that addresses in requests may have; none: any."""
        return tuple(int(port) for port in self.webhook_ports.split(",") if port)

    @property
    def runs(self) -> Path:
        return self.run_dir or self.state_dir.absolute() / "run"


def _secrets_dir() -> Path | None:
    """The folder of `WAN_SECRETS_DIR`, which must be known before the settings are read."""
    folder = os.environ.get("WAN_SECRETS_DIR")
    if folder and not Path(folder).is_dir():
        raise SettingsError(f"WAN_SECRETS_DIR is {folder!r}; allowed: an existing folder")
    return Path(folder) if folder else None


def load_settings(**overrides) -> Settings:
    """Read the environment; SettingsError names the variable, its value and what is allowed."""
    try:
        return Settings(_secrets_dir=_secrets_dir(), **overrides)
    except ValidationError as error:
        first = error.errors()[0]
        key = "WAN_" + str(first["loc"][0]).upper()
        allowed = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        raise SettingsError(f"{key} is {shown(first.get('input'))}; allowed: {allowed}") from None
