"""`/v1/loras`: which adapters requests may name; admin keys change it."""

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from contract.adapter_store import Entry
from service.api.auth import Caller
from service.api.videos import TheCaller, TheGateway, errors
from service.errors import Forbidden, InvalidRequest

router = APIRouter(prefix="/v1")
Name = Annotated[str, Path(max_length=64)]
FileName = Annotated[str, Field(max_length=300)]


class NewLora(BaseModel):
    """Files of the directory WAN_LORA_DIR; `files` where the model has two experts, null for one that stays as it is."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=64)
    file: FileName | None = None
    files: list[FileName | None] | None = Field(None, min_length=1, max_length=2)
    model: str | None = Field(None, max_length=64, description="The one it is for; by default the gateway's own.")


class LoraFile(BaseModel):
    file: str
    sha256: str
    bytes: int
    rank: int


class Lora(BaseModel):
    id: str
    object: str = "lora"
    created: int
    model: str
    rank: int
    files: list[LoraFile | None]


class LoraList(BaseModel):
    object: str = "list"
    data: list[Lora]


class LoraDeleted(BaseModel):
    id: str
    object: str = "lora.deleted"
    deleted: bool = True


def _answer(entry: Entry) -> Lora:
    files = [f and LoraFile(file=f.path, sha256=f.sha256, bytes=f.bytes, rank=f.rank) for f in entry.files]
    return Lora(id=entry.name, created=entry.created, model=entry.model, rank=entry.rank, files=files)


def _admin(caller: Caller) -> None:
    if not caller.admin:
        raise Forbidden('only a key with "admin": true may change the adapters')


@router.get("/loras", response_model=LoraList, responses=errors())
async def list_loras(gateway: TheGateway, caller: TheCaller):
    """The adapters that a request may name in `lora`."""
    return LoraList(data=[_answer(entry) for entry in await run_in_threadpool(gateway.adapters.all)])


@router.post("/loras", response_model=Lora, responses=errors(400, 403, 409))
async def register_lora(wanted: NewLora, gateway: TheGateway, caller: TheCaller):
    """For admin keys: check a file of the directory against the model, and let requests name it."""
    _admin(caller)
    if (wanted.file is None) == (wanted.files is None):
        raise InvalidRequest("file", wanted.file, "one of file and files")
    served = await gateway.served(wanted.model)
    files = wanted.files if wanted.files is not None else [wanted.file]
    return _answer(await run_in_threadpool(gateway.adapters.register, wanted.name, files, served.name, served.card))


@router.delete("/loras/{name}", response_model=LoraDeleted, responses=errors(400, 403, 404))
async def delete_lora(name: Name, gateway: TheGateway, caller: TheCaller):
    """For admin keys: take an adapter out of the index; its file stays. Jobs that name it and have not begun will fail."""
    _admin(caller)
    await run_in_threadpool(gateway.adapters.remove, name)
    return LoraDeleted(id=name)
