"""What of a repository's configurations depends on the request: its parameters and the media that a checkpoint takes."""

from contract.media import MEDIA
from contract.parameters import TENSORS
from stages.media import FRAMES

VAE_ENCODER, IMAGE_ENCODER = "vae_encoder", "image_encoder"
MADE = {VAE_ENCODER: "CONDITION", IMAGE_ENCODER: "IMAGE_TOKENS"}


def encoders(values: dict) -> tuple[str, ...]:
    """The encoders that a checkpoint needs of its media; `values` as of the templates."""
    with_clip = (IMAGE_ENCODER,) if values.get("image_dim") else ()
    return (VAE_ENCODER, *with_clip) if values.get("takes") else ()


def _media(takes: tuple[str, ...]) -> dict[str, str]:
    """Triton's inputs for media, by name."""
    found = {m.tensor_name: f'{{ name: "{m.tensor_name}" data_type: TYPE_STRING dims: [ 1 ] optional: true }}'
             for m in MEDIA if m.name in takes}  # fmt: skip
    if "video" in takes:
        found[FRAMES] = f'{{ name: "{FRAMES}" data_type: TYPE_UINT8 dims: [ -1, -1, -1, 3 ] optional: true }}'
    return found


def _step(model: str, media: dict[str, str]) -> str:
    maps = ['input_map { key: "SIZE" value: "size" }', *(_map(name, name) for name in media)]
    maps.append(f'output_map {{ key: "{MADE[model]}" value: "{MADE[model].lower()}" }}')
    body = "\n      ".join([f'model_name: "{model}"', "model_version: -1", *maps])
    return f"{{\n      {body}\n    }},\n    "


def _map(key: str, value: str) -> str:
    return f'input_map {{ key: "{key}" value: "{value}" }}'


def request_values(takes: tuple[str, ...], image_dim: int) -> dict[str, str]:
    """Placeholders of the templates: the inputs of a request, and the encoders of media between tokenizer and denoise."""
    media = _media(takes)
    inputs = [f'{{ name: "{p.tensor_name}" data_type: TYPE_{p.kind} dims: [ 1 ] optional: true }}' for p in TENSORS]
    names = [*(p.tensor_name for p in TENSORS), *media]
    models = encoders({"takes": takes, "image_dim": image_dim})
    dims = {VAE_ENCODER: "-1, -1, -1, -1", IMAGE_ENCODER: f"-1, {image_dim}"}
    given = [f',\n  {{ name: "{MADE[m]}" data_type: TYPE_FP32 dims: [ {dims[m]} ] optional: true }}' for m in models]
    return {
        "request_inputs": ",\n  ".join([*inputs, *media.values()]),
        "request_maps": "\n      ".join(_map(name, name) for name in names),
        "media_inputs": ",\n  ".join(media.values()),
        "size_output": '\n  { name: "SIZE" data_type: TYPE_INT32 dims: [ 3 ] },' if models else "",
        "size_map": '\n      output_map { key: "SIZE" value: "size" }' if models else "",
        "encoder_steps": "".join(_step(model, media) for model in models),
        "given_inputs": "".join(given),
        "given_maps": "".join(f"\n      {_map(MADE[m], MADE[m].lower())}" for m in models),
    }
