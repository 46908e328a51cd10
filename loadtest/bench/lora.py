"""`python -m loadtest lora`: a forward of the DiT with and without adapters beside its weights, in turn, on random weights."""

import argparse
import statistics
import time

import torch

from loadtest.bench.cases import ARCHITECTURES, GEOMETRY
from wan import adapted
from wan.config import DiTConfig
from wan.dit import WanDiT
from wan.lora import Lora
from wan.optimize import Options, block_linears, cast, optimized

TEXT = 60  # tokens of a prompt


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=tuple(ARCHITECTURES), default="t2v-1.3b", help="whose width")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rank", type=int, nargs="+", default=[64], help="of each adapter that is applied at once")
    parser.add_argument("--size", default="416x240", help="WIDTHxHEIGHT")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--linear", default="auto", help="as in WAN_LINEAR")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--limit", type=float, default=0.08, help="share of a forward that adapters may cost")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def _adapter(dit: WanDiT, names: list[str], rank: int) -> Lora:
    shapes = {name: tuple(parameter.shape) for name, parameter in dit.named_parameters()}
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        out, width = shapes[name + ".weight"]
        tensors |= {f"{name}.lora_A": torch.randn(rank, width) * 0.02, f"{name}.lora_B": torch.randn(out, rank) * 0.02}
    return Lora("random", tensors, shapes)


@torch.inference_mode()
def measure(given: argparse.Namespace) -> tuple[float, float]:
    """Median seconds of a forward without adapters, and the median share that they add to one."""
    torch.manual_seed(0)
    with torch.device(given.device):
        dit = (
            WanDiT(DiTConfig(**ARCHITECTURES[given.model] | {"num_layers": given.layers})).eval().requires_grad_(False)
        )
    adapters = [(_adapter(dit, block_linears(dit), rank), 1.0) for rank in given.rank]
    if dit.device.type == "cuda":
        cast(dit, torch.bfloat16)
    optimized(dit, Options(linear=given.linear))
    width, height = map(int, given.size.split("x"))
    latents = torch.randn(1, *GEOMETRY.latent_shape(width, height, given.frames), device=dit.device)
    context = torch.randn(1, TEXT, dit.config.text_dim, device=dit.device)

    # on a CPU that others use too, time of the process: of all its threads together
    clock = time.perf_counter if dit.device.type == "cuda" else time.process_time

    def seconds(beside: adapted.Adapters) -> float:
        with adapted.applied(dit, beside):
            _, modulation = dit.time_embeddings([500.0])
            request = modulation, dit.rotary(latents.shape), dit.conditioning(context)  # once a request
            tokens = dit.patchify(latents)
            began = clock()
            dit.run_blocks(tokens, *request)
            if dit.device.type == "cuda":
                torch.cuda.synchronize(dit.device)
            return clock() - began

    for beside in ([], adapters):
        seconds(beside)
    pairs = [(seconds([]), seconds(adapters)) for _ in range(given.repeats)]
    return statistics.median(own for own, _ in pairs), statistics.median(both / own - 1 for own, both in pairs)


def handle(given: argparse.Namespace) -> int:
    seconds, share = measure(given)
    width, height = map(int, given.size.split("x"))
    tokens = GEOMETRY.tokens(width, height, given.frames)
    what = f"{given.model} width, {given.layers} layers, {tokens} tokens, rank {' + '.join(map(str, given.rank))}"
    print(
        f"{what}: {1000 * seconds:.1f} ms{'' if given.device != 'cpu' else ' of the CPU'} a forward, adapters add {share:+.1%} (limit {given.limit:.0%})"
    )
    return 0 if share <= given.limit else 1
