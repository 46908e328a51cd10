"""`python -m tests.wan.parallel.ranks`: whole runs on gloo ranks beside one rank, as JSON lines of {name: difference}.

A process of its own, which forks its ranks: they need not import PyTorch again.
"""

import json
import multiprocessing
from dataclasses import replace

import torch

from contract import Defaults, Geometry, ModelCard
from contract.parallel import Degrees
from contract.parameters import LOSSLESS
from tests.wan.adapter_files import FAMILIES, pairs
from wan.checkpoint import weight_shapes
from wan.config import DiTConfig
from wan.denoise import Conditioning, Denoiser, Expert, Resume
from wan.dit import WanDiT
from wan.loading import load_dit
from wan.lora import Lora
from wan.parallel.share import Share
from wan.parallel.team import Leader, Team, follow, meeting_place

FORK = multiprocessing.get_context("fork")
CARD = ModelCard(
    defaults=Defaults(
        width=48, height=16, num_frames=9, steps=3, guidance_scale=3.0, flow_shift=3.0, negative_prompt=""
    )
)  # 3 latent frames of 1 x 3 patches: 9 tokens


def random_dit(heads: int, **sizes) -> WanDiT:
    """A DiT with many small heads."""
    torch.manual_seed(heads)
    config = DiTConfig(dim=heads * 12, ffn_dim=64, num_heads=heads, num_layers=2, text_dim=16, freq_dim=32, **sizes)
    dit = WanDiT(config).eval().requires_grad_(False)
    for parameter in dit.parameters():
        parameter.normal_(std=0.1)
    return dit


class EveryThird:
    """A step cache that skips every third step."""

    def plan(self, time, modulation, threshold):
        return tuple(i % 3 != 2 for i in range(time.shape[0]))


def two_experts(heads: int) -> Denoiser:
    dits = [random_dit(heads), random_dit(heads)]
    cached = {"teacache": EveryThird()}
    return Denoiser((Expert(dits[0], cached, 800.0), Expert(dits[1], cached, guidance="guidance_scale_2")), Geometry())


def with_pictures(heads: int) -> Denoiser:
    return Denoiser((Expert(random_dit(heads, in_channels=36, image_dim=8)),), Geometry())


def conditioning(denoiser: Denoiser, request, first: bool = False) -> Conditioning:
    generator = torch.Generator().manual_seed(2)
    text, negative = torch.randn(2, 512, denoiser.experts[0].dit.config.text_dim, generator=generator)
    text[7:], negative[2:] = 0, 0
    blank = denoiser.blank(text, request)

    def noise(like):
        return None if like is None else torch.randn(like.shape, generator=generator)

    shape = denoiser.geometry.latent_shape(request.width, request.height, 1)
    given = torch.randn(shape, generator=generator) if first else None
    return Conditioning(text, negative, noise(blank.channels), noise(blank.image_tokens), first=given)


def run(degrees: Degrees, build, lead) -> None:
    """`lead(denoiser, led)` in rank 0; each rank builds its denoiser. This process only forks: it has no threads yet."""
    pipes = [FORK.Pipe() for _ in range(degrees.ranks - 1)]

    def rank(number: int) -> None:
        torch.set_num_threads(1)
        denoiser = build()
        dits = [expert.dit for expert in denoiser.experts]
        degrees.check(dits[0].config.num_heads)
        if number:
            for ours, _ in pipes:
                ours.close()
            own = pipes[number - 1][1]
            follow(Team(Share(degrees, number), own.recv(), dits, 30.0), own)
            return
        place = meeting_place(degrees.ranks)
        for ours, theirs in pipes:
            theirs.close()
            ours.send(place.port)
        alone = build()
        team = Team(Share(degrees, 0), place, dits, 30.0)
        leader = Leader(team, [ours for ours, _ in pipes], lambda error: error)
        lead(alone, replace(denoiser, evaluators=leader.evaluator))
        for ours, _ in pipes:
            ours.close()
        team.leave()

    processes = [FORK.Process(target=rank, args=(number,)) for number in range(degrees.ranks)]
    for process in processes:
        process.start()
    for ours, theirs in pipes:
        ours.close()
        theirs.close()
    for process in processes:
        process.join(40)
        process.kill()
    assert [process.exitcode for process in processes] == [0] * degrees.ranks


def adapters_of(denoiser: Denoiser) -> dict[str, list[Lora]]:
    """The adapter `style`: a random file for each expert, with a LoKr and differences in full rank."""
    weights = weight_shapes(denoiser.experts[0].dit.config)
    generator = torch.Generator().manual_seed(4)
    more = {"blocks.0.self_attn.o.lokr_w1": torch.randn(4, 4, generator=generator),
            "blocks.0.norm3.diff": torch.randn(weights["blocks.0.norm3.weight"], generator=generator)}  # fmt: skip
    size = weights["blocks.0.self_attn.o.weight"][0] // 4
    more["blocks.0.self_attn.o.lokr_w2"] = 0.1 * torch.randn(size, size, generator=generator)
    kept = [pairs(weights, seed=seed, size=0.5) for seed, _ in enumerate(denoiser.experts)]
    for each in kept:
        del each["blocks.0.self_attn.o"]
    return {"style": [Lora("test", FAMILIES["bare"](each) | more, weights) for each in kept]}


def compared(name: str, build, degrees: str, first: bool = False, **parameters) -> None:
    """Print the largest difference from one rank, relative to the largest value, and what a resume on one rank gives."""
    asked = CARD.request(prompt="a", seed=3, **LOSSLESS | parameters)
    request = replace(asked, guidance_scale_2=2.0)  # of the second expert, where there is one

    def lead(alone: Denoiser, led: Denoiser) -> None:
        given, middle = conditioning(alone, request, first), []
        beside: dict = {"adapters": adapters_of(alone)} if request.lora else {}
        expected, info = alone.run(given, request, **beside)
        together, of = led.run(given, request, on_step=middle.append, **beside)
        saved = [progress for progress in middle if progress.resumable][-1]
        resume = Resume(saved.step, saved.state)

        def difference(latents) -> float:
            return ((latents - expected).abs().max() / expected.abs().max()).item()

        found = {
            "name": name, "tokens": alone.experts[0].dit.rotary(expected.shape).shape[1],
            "skipped": info.steps_skipped, "branches": [step.branches for step in of.plan],
            "difference": difference(together),
            "continued_on_one": difference(alone.run(given, request, resume=resume, **beside)[0]),
            "repeats": torch.equal(led.run(given, request, resume=resume, **beside)[0], together),
            "adapted": difference(led.run(given, replace(request, lora=()))[0]),
        }  # fmt: skip
        print(json.dumps(found), flush=True)

    run(Degrees.parse(degrees), build, lead)


def main() -> None:
    def one(make) -> Denoiser:
        return Denoiser((Expert(make()),), Geometry())

    def tiny() -> Denoiser:
        return one(lambda: load_dit("models/tiny"))

    def twelve() -> Denoiser:
        return one(lambda: random_dit(12))

    def forty() -> Denoiser:
        return one(lambda: random_dit(40))

    small = {"width": 48, "height": 32}
    compared("models/tiny", tiny, "cfg2", **small)
    compared("models/tiny, all", tiny, "cfg2xulysses2", width=48, height=48, num_frames=1)
    compared("12 heads", twelve, "ulysses4")
    compared("12 heads, guided at first", twelve, "cfg2xulysses2", guidance_end=0.5)
    compared("40 heads", forty, "cfg2xulysses2", sampler="unipc")
    compared("40 heads, few tokens", forty, "ulysses4", width=16)
    compared(
        "two experts, cached", lambda: two_experts(12), "cfg2xulysses2", cache="teacache", cache_threshold=1.0, steps=6
    )
    compared("two experts, adapted", lambda: two_experts(12), "cfg2xulysses2", lora="style:0.8")
    compared("pictures", lambda: with_pictures(12), "ulysses3")
    compared("the first frame given", twelve, "ulysses4", first=True)


if __name__ == "__main__":
    main()
