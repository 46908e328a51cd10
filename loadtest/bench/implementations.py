"""The two sides of a comparison: each builds a case and returns a function that runs it once and gives its result.

Random weights come from the official names in order, so both sides draw the same.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from contract.card import ModelCard
from contract.parameters import LOSSLESS, GenerationRequest
from loadtest.bench.cases import GEOMETRY, PROMPT_TOKENS, Case
from wan import keys
from wan.checkpoint import Checkpoint
from wan.config import DiTConfig, VAEConfig
from wan.denoise import Conditioning, Denoiser, Expert
from wan.dit import WanDiT
from wan.optimize import Options, cast, optimized
from wan.pipeline import Pipeline, at_size, load_denoiser
from wan.vae import WanVAE
from wan.vae_cpu import accelerate

Run = Callable[[], Tensor]
PROMPT = "a red circle moves left on a white background"


def _fill(named: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Random weights in the order of the names; small, so that activations stay in range through forty layers."""
    generator: dict[torch.device, torch.Generator] = {}
    for _, parameter in sorted(named):
        device = parameter.device
        random = generator.setdefault(device, torch.Generator(device).manual_seed(0))
        with torch.no_grad():
            parameter.normal_(std=0.02, generator=random)


def _inputs(case: Case, text_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents [1, C, T', h, w], timestep [1] and text [2, 512, text_dim]: a sentence and an empty prompt."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, *case.shape, generator=generator)
    context = torch.randn(2, 512, text_dim, generator=generator)
    context[0, PROMPT_TOKENS:], context[1, 1:] = 0, 0
    dtype = getattr(torch, case.dtype)
    return latents.to(case.device), torch.tensor([500.0], device=case.device), context.to(case.device, dtype)


def _card(case: Case) -> ModelCard:
    return Checkpoint.open(case.checkpoint).card if case.checkpoint else ModelCard()


def _whole_run(case: Case, text_dim: int) -> tuple[GenerationRequest, Tensor, Tensor]:
    """Request, latents [1, C, T', h, w] and text of a run through all steps."""
    card = _card(case)
    request = card.request(prompt=PROMPT, seed=0, **LOSSLESS | case.request)
    shape = card.geometry.latent_shape(request.width, request.height, request.num_frames)
    latents, _, context = _inputs(Case(**case.as_dict() | {"shape": shape}), text_dim)
    return request, latents, context


def _our_denoiser(case: Case) -> Denoiser:
    """A checkpoint as it is served, or random weights of a size the same way."""
    dtype, options = getattr(torch, case.dtype), Options(**case.loading)
    if case.checkpoint:
        checkpoint = Checkpoint.open(case.checkpoint)
        options = at_size(options, checkpoint.card)
        return load_denoiser(checkpoint, checkpoint.card.geometry, torch.device(case.device), dtype, options)
    with torch.device(case.device):
        dit = WanDiT(DiTConfig(**case.architecture)).eval()
    _fill(dit.named_parameters())
    options = replace(options, tokens=math.prod(case.shape[1:]) // GEOMETRY.patch**2)
    return Denoiser((Expert(optimized(cast(dit, dtype), options)),), _card(case).geometry, "diffusers")


@dataclass(frozen=True)
class _Loaded:
    """A run and the denoiser that it uses, which knows how it computed."""

    denoiser: Denoiser
    run: Run

    def __call__(self) -> Tensor:
        return self.run()


def ours(case: Case) -> Run:
    if case.part == "vae":
        with torch.device(case.device):
            vae = WanVAE(VAEConfig()).eval()
        _fill(vae.named_parameters())
        vae = accelerate(vae.channels_last())
        latents, _, _ = _inputs(case, 1)
        return lambda: vae.decode(latents)
    if case.part == "text":
        pipeline = Pipeline.from_checkpoint(case.checkpoint, case.device)
        return lambda: pipeline.encode([PROMPT, ""])
    loop = _our_denoiser(case)
    dit = loop.experts[0].dit
    if case.part == "dit":
        latents, timestep, context = _inputs(case, dit.config.text_dim)
        return _Loaded(loop, lambda: dit(latents, timestep, context[:1]))
    request, latents, context = _whole_run(case, dit.config.text_dim)
    return _Loaded(loop, lambda: loop.run(Conditioning(*context), request, latents=latents[0])[0])


def _their_dit(case: Case):
    from diffusers import WanTransformer3DModel

    dtype = getattr(torch, case.dtype)
    if case.checkpoint:
        return (
            WanTransformer3DModel.from_pretrained(f"{case.checkpoint}/transformer", torch_dtype=dtype)
            .to(case.device)
            .eval()
        )
    a = case.architecture
    with torch.device(case.device):
        model = WanTransformer3DModel(
            num_attention_heads=a["num_heads"], attention_head_dim=a["dim"] // a["num_heads"], ffn_dim=a["ffn_dim"],
            num_layers=a["num_layers"], in_channels=16, out_channels=16, text_dim=4096, freq_dim=256,
            cross_attn_norm=True, qk_norm="rms_norm_across_heads",
        ).eval()  # fmt: skip
    _fill((keys.dit_from_diffusers(name), p) for name, p in model.named_parameters())
    return model.to(dtype)


def _their_denoise(case: Case, model) -> Run:
    from diffusers import UniPCMultistepScheduler

    request, latents, context = _whole_run(case, model.config.text_dim)

    def run() -> Tensor:
        scheduler = UniPCMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=request.flow_shift,
            num_train_timesteps=1000,
        )
        scheduler.set_timesteps(request.steps, device=case.device)
        x = latents
        for t in scheduler.timesteps:  # as diffusers' WanPipeline: one forward for each branch
            conditional = model(x.to(model.dtype), t[None], context[:1], return_dict=False)[0].float()
            unconditional = model(x.to(model.dtype), t[None], context[1:], return_dict=False)[0].float()
            velocity = unconditional + request.guidance_scale * (conditional - unconditional)
            x = scheduler.step(velocity, t, x, return_dict=False)[0]
        return x[0]

    return run


def diffusers(case: Case) -> Run:
    """The same case by diffusers and transformers as a user would run them."""
    if case.part == "vae":
        from diffusers import AutoencoderKLWan

        with torch.device(case.device):
            vae = AutoencoderKLWan().eval()
        rename = keys.vae_from_diffusers(2)
        _fill((rename(name), p) for name, p in vae.named_parameters())
        config, (latents, _, _) = VAEConfig(), _inputs(case, 1)
        mean, std = (
            torch.tensor(v, device=case.device).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std)
        )
        return lambda: vae.decode(latents * std + mean).sample
    if case.part == "text":
        from transformers import AutoTokenizer, UMT5EncoderModel

        tokenizer = AutoTokenizer.from_pretrained(f"{case.checkpoint}/tokenizer")
        encoder = UMT5EncoderModel.from_pretrained(f"{case.checkpoint}/text_encoder", dtype=torch.float32).eval()
        return lambda: _their_texts(tokenizer, encoder.to(case.device), case.device)
    model = _their_dit(case)
    if case.part == "denoise":
        return _their_denoise(case, model)
    latents, timestep, context = _inputs(case, model.config.text_dim)
    return lambda: model(latents.to(model.dtype), timestep, context[:1], return_dict=False)[0]


def _their_texts(tokenizer, encoder, device: str) -> Tensor:
    """As diffusers' WanPipeline: padded to 512, encoded whole, cut to the text, padded with zeros."""
    tokens = tokenizer([PROMPT, ""], padding="max_length", max_length=512, truncation=True, return_tensors="pt").to(
        device
    )
    hidden = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    return hidden * tokens.attention_mask[..., None]


SIDES = {"ours": ours, "diffusers": diffusers}
