"""The bundled LoRAs: in training, as files in the layout of PEFT with an index that the service reads, and loaded again."""

import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from contract import adapters
from contract.adapter_store import AdapterStore, Entry
from contract.card import ModelCard
from contract.lora_keys import unfolded
from wan.dit import WanDiT
from wan.keys import dit_to_diffusers
from wan.lora import Lora

FOLDER = Path(__file__).parent.parent / "models/loras"


class LowRank(nn.Linear):
    """A frozen linear layer with up (down x) beside it, which begins as nothing."""

    def __init__(self, base: nn.Linear, rank: int):
        super().__init__(base.in_features, base.out_features, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.linear(F.linear(x, self.down), self.up)


def attach(dit: WanDiT, rank: int) -> WanDiT:
    """In place: a pair beside every linear layer of the blocks, nothing else to be trained."""
    dit.requires_grad_(False)
    for parent in list(dit.blocks.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear):
                setattr(parent, name, LowRank(layer, rank))
    return dit


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def save(dit: nn.Module, file: Path, base: Path, card: ModelCard) -> None:
    """Write the pairs alone, in bfloat16, and register the file for requests to the model `base`."""
    state = {}
    for name, layer in dit.named_modules():
        if isinstance(layer, LowRank):
            key = "transformer." + dit_to_diffusers(f"{name}.weight").removesuffix("weight")
            state[f"{key}lora_A.weight"], state[f"{key}lora_B.weight"] = layer.down, layer.up
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().bfloat16().contiguous() for k, v in state.items()}, file, metadata={"format": "pt"})
    file.chmod(0o644)  # safetensors writes for the owner alone
    store = AdapterStore(str(file.parent.absolute()))
    examined = store.examine(file.name, unfolded(card.weights))
    store.add(Entry(file.stem, f"wan-{base.resolve().name}", (examined,), int(time.time())))


def bundled(card: ModelCard, wanted: str | None) -> dict[str, list[Lora | None]]:
    """What a pipeline takes as `adapters`, for the parameter `lora`: NAME:STRENGTH,NAME with names of files in models/loras."""
    names = [adapter.name for adapter in adapters.parse(wanted)]
    return {name: [Lora.load(FOLDER / f"{name}.safetensors", unfolded(card.weights))] for name in names}
