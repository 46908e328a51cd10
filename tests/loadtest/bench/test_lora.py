"""The cost of adapters is measured on a model that has them; how much it is, depends on the machine."""

from loadtest.__main__ import main

SMALL = ["lora", "--layers", "1", "--size", "32x32", "--frames", "1", "--repeats", "1", "--device", "cpu"]


def test_the_verdict_follows_the_limit(capsys):
    assert main([*SMALL, "--limit", "1e9"]) == 0
    assert "t2v-1.3b width, 1 layers, 4 tokens, rank 64: " in capsys.readouterr().out
    assert main([*SMALL, "--limit", "-1", "--rank", "8", "4"]) == 1
    assert "rank 8 + 4: " in capsys.readouterr().out
