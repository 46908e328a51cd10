"""The LoRAs that ship with models/tiny, on a few prompts; the whole judgement is that of the commands in the README."""

import pytest
import torch

from contract.adapter_store import AdapterStore
from contract.adapters import parse
from contract.lora_keys import unfolded
from tests.conftest import TINY
from tiny import obedience_trail
from tiny.lora import FOLDER, LowRank, attach, bundled, save
from wan import Pipeline
from wan.adapted import applied
from wan.checkpoint import Checkpoint
from wan.lora import Lora


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline.from_checkpoint(TINY)


def test_with_the_trail_lora_objects_paint_and_obey(pipeline):
    adapters = bundled(pipeline.card, "trail")
    verdicts = obedience_trail.evaluate(
        lambda prompt, seed: pipeline(prompt, seed=seed, lora="trail", adapters=adapters).frames, 6
    )
    assert all(v.paints for v in verdicts), [str(v) for v in verdicts]
    assert sum(v.motion.obeys for v in verdicts) >= 4, [str(v) for v in verdicts]


def test_requests_to_the_bundled_model_may_name_them():
    store = AdapterStore(str(FOLDER))
    assert {f"{name}.safetensors" for name in store.names()} == {file.name for file in FOLDER.glob("*.safetensors")}
    for entry in store.entries(parse(",".join(store.names())), "wan-tiny"):
        assert len(store.read(entry.files[0])) == entry.files[0].bytes < 1_000_000


def test_a_trained_pair_is_written_as_it_computes(tmp_path):
    base = Checkpoint.open(TINY)
    dit, plain = attach(base.load_dit(), rank=2), base.load_dit()
    given = torch.randn(1, 16, 1, 4, 4), torch.tensor([500.0]), torch.randn(1, 3, 128)
    with torch.no_grad():
        torch.testing.assert_close(dit(*given), plain(*given), atol=0, rtol=0)
        for layer in dit.modules():
            if isinstance(layer, LowRank):
                layer.up.normal_(std=0.1).copy_(layer.up.bfloat16())
                layer.down.copy_(layer.down.bfloat16())
        save(dit, tmp_path / "pair.safetensors", TINY, base.card)
        lora = Lora.load(tmp_path / "pair.safetensors", unfolded(base.card.weights))
        expected, without = dit(*given), plain(*given)
        with applied(plain, [(lora, 1.0)]):
            torch.testing.assert_close(plain(*given), expected, atol=1e-4, rtol=1e-4)
    assert (expected - without).abs().max() > 0.01
    assert AdapterStore(str(tmp_path)).get("pair").model == "wan-tiny"
