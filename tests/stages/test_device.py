import torch

from stages.device import leave_room, on_device


def test_a_stage_on_a_gpu_makes_it_the_current_one_and_a_stage_on_a_cpu_touches_none():
    assert on_device(torch.device("cuda:1")).idx == 1
    assert not isinstance(on_device(torch.device("cpu")), torch.cuda.device)


def test_where_nothing_was_placed_no_memory_is_promised_to_others(monkeypatch):
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *_: (_ for _ in ()).throw(AssertionError))
    leave_room({"target": "workstation"}, "denoise", torch.device("cuda:0"))
