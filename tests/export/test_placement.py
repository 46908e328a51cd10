import pytest

from export import memory
from export.dit.precision import Precision
from export.placement import (
    GIB,
    Gpu,
    Placement,
    PlacementError,
    auto_placement,
    check,
    choose,
    parse_gpus,
    parse_placement,
)
from export.tensorrt.vae_cache import CacheSlot, decoder_slots, encoder_slots
from wan.config import DiTConfig, TextConfig, VAEConfig

NEEDS = {"text_encoder": 12 * GIB, "denoise": 40 * GIB, "vae_decoder": 14 * GIB}


def test_placement_by_hand():
    placement = parse_placement("text_encoder=0,denoise=1-3+5,vae_decoder=7", denoise_instances=2)
    assert placement.gpus == {"text_encoder": (0,), "denoise": (1, 2, 3, 5), "vae_decoder": (7,)}
    assert placement.load(5, NEEDS) == 80 * GIB
    assert placement.used == [0, 1, 2, 3, 5, 7]


def test_gpus_of_one_video_are_one_instance_on_the_first_of_them():
    placement = parse_placement("text_encoder=0,denoise=0-7:ulysses4,vae_decoder=7")
    assert placement.slots == {"text_encoder": 1, "denoise": 2, "vae_decoder": 1}
    assert placement.leading("denoise") == (0, 4)
    assert placement.load(3, NEEDS) == 40 * GIB  # each rank has all weights
    whole = parse_placement("text_encoder=0,denoise=0-7:cfg2xulysses4,vae_decoder=7")
    assert (whole.slots["denoise"], str(whole.parallel)) == (1, "cfg2xulysses4")


@pytest.mark.parametrize(("stage", "degrees", "instances", "message"), [
    ("denoise=0-7:cfg3", "", 1, "'cfg3' is not understood; allowed: cfg2, ulyssesN"),
    ("denoise=0-6:ulysses4", "", 1, "ulysses4 takes 4 GPUs, or a multiple; it has 7"),
    ("denoise=0-3:ulysses4", "", 2, "denoise_instances is 2; allowed with ulysses4: 1"),
    ("denoise=0", ":cfg2", 1, "vae_decoder runs on one GPU at a time"),
])  # fmt: skip
def test_groups_that_cannot_be_are_refused(stage, degrees, instances, message):
    with pytest.raises(PlacementError, match=message):
        parse_placement(f"text_encoder=0,{stage},vae_decoder=0-1{degrees}", instances)


@pytest.mark.parametrize(("text", "message"), [
    ("text_encoder=0,denoise=1", "vae_decoder is missing"),
    ("text_encoder=0,denoise=3-1,vae_decoder=0", "'3-1' is not a GPU or a range"),
    ("text_encoder=0,denoise=1+1,vae_decoder=0", "named twice in '1\\+1'"),
    ("text_encoder=0,dit=1,vae_decoder=0", "'dit=1' is not understood; allowed: STAGE=GPUS for each of text_encoder"),
    ("", "'' is not understood"),
])  # fmt: skip
def test_malformed_placements_are_refused(text, message):
    with pytest.raises(PlacementError, match=message):
        parse_placement(text)


def test_gpus_of_the_target():
    assert [gpu.memory for gpu in parse_gpus("2x80")] == [80 * GIB] * 2
    assert [gpu.memory for gpu in parse_gpus("80,141")] == [80 * GIB, 141 * GIB]
    with pytest.raises(PlacementError, match="gpus is 'eight'; allowed: COUNTxGIB as in 8x80"):
        parse_gpus("eight")


@pytest.mark.parametrize(("gpus", "expected"), [
    ("1x80", ((0,), (0,), (0,))),  # all together
    ("2x80", ((0,), (0, 1), (1,))),
    ("8x80", ((0,), tuple(range(8)), (7,))),
    ("2x48", ((0,), (1,), (0,))),  # denoise has no room beside the others
    ("80,48", ((0,), (0, 1), (0,))),  # the decoder moves to the larger GPU
])  # fmt: skip
def test_auto_gives_denoise_every_gpu_that_has_room(gpus, expected):
    placement = auto_placement(parse_gpus(gpus), NEEDS)
    assert tuple(placement.gpus.values()) == expected


def test_what_cannot_fit_is_refused_with_the_numbers():
    with pytest.raises(
        PlacementError,
        match=r"GPU 0 needs 66.0 GiB \(text_encoder 12.0, denoise 40.0, vae_decoder 14.0\), 45.6 of 48.0 are",
    ):
        choose("auto", parse_gpus("1x48"), NEEDS, 1, print)
    with pytest.raises(PlacementError, match=r"GPU 1 needs 80.0 GiB \(denoise 80.0\), 76.0 of 80.0"):
        choose("text_encoder=0,denoise=1,vae_decoder=0", parse_gpus("2x80"), NEEDS, 2, print)
    with pytest.raises(PlacementError, match="uses GPU 2; there are 2: 0, 1"):
        check(Placement({"text_encoder": (0,), "denoise": (2,), "vae_decoder": (0,)}), parse_gpus("2x80"), NEEDS)


def test_auto_without_gpus_asks_for_them_and_by_hand_says_what_was_not_checked():
    with pytest.raises(PlacementError, match="--gpus 8x80"):
        choose("auto", [], NEEDS, 1, print)
    said = []
    choose("text_encoder=0,denoise=0,vae_decoder=0", [], NEEDS, 1, said.append)
    assert "was not checked" in said[0]


def test_caches_of_the_real_decoder_have_the_documented_size():
    slots = decoder_slots(VAEConfig())
    assert len(slots) == 32
    assert slots[0] == CacheSlot(16, 2, 1)
    assert slots[31] == CacheSlot(96, 2, 8)
    elements = 0
    for slot in slots:
        _, channels, frames, height, width = slot.shape(60, 104)
        elements += channels * frames * height * width
    assert elements == 944_286_720  # measured on the reference at 480 x 832
    assert len(encoder_slots(VAEConfig())) == 24


def test_memory_of_the_real_models_is_of_the_known_order():
    vae, slots = VAEConfig(), decoder_slots(VAEConfig())
    video = memory.Video(1280, 720, 81)
    text = memory.text_encoder(TextConfig(), 5_680_910_336, 512, batch=2)
    assert text.weights == 11_361_820_672  # the published file
    decoder = memory.vae(vae, 73_295_331, slots, video)
    assert 8 * GIB < decoder.caches + decoder.activations < 20 * GIB
    dit = DiTConfig(dim=5120, num_layers=40, num_heads=40, ffn_dim=13824)
    denoise = memory.denoise(dit, 14_530_000_000, video, vae)
    assert 14 * GIB < denoise.activations < 40 * GIB
    small = memory.denoise(dit, 14_530_000_000, memory.Video(832, 480, 81), vae)
    assert small.activations / denoise.activations == pytest.approx(32_760 / 75_600)


def test_table_shows_stages_and_gpus():
    stages = {name: memory.StageMemory(needs - memory.CONTEXT, 0, 0) for name, needs in NEEDS.items()}
    placement = parse_placement("text_encoder=0,denoise=0-1,vae_decoder=1")
    table = memory.table(stages, placement, [Gpu(0, 80 * GIB, "H100"), Gpu(1, 80 * GIB)], memory.Video(832, 480, 81))
    lines = table.splitlines()
    assert lines[0] == "GPU memory in GiB for 832x480, 81 frames"
    assert lines[3].split() == ["denoise", "39.41", "0.00", "0.00", "0.59", "40.00", "0,", "1"]
    assert lines[-2].split()[:4] == ["0", "52.00", "80.0", "H100"]


def test_precision_keeps_what_it_should(checkpoint):
    precision = Precision("fp8")
    assert precision.is_fp8("blocks.3.cross_attn.k.weight", (64, 64), 8)
    for name in (
        "blocks.3.ffn.0.bias",
        "head.head.weight",
        "text_embedding.0.weight",
        "time_projection.1.weight",
        "blocks.3.norm3.weight",
    ):
        assert not precision.is_fp8(name, (64, 64), 8)
    assert not precision.is_fp8("blocks.3.ffn.0.weight", (64, 40), 8)  # not a multiple of 16
