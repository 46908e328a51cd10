"""`python -m stages.rank FD`: one of the ranks that a `stages.crew.Crew` starts; FD is its end of the pipe."""

import logging
import pickle
import sys
from multiprocessing.connection import Connection

import torch

from stages.crew import Orders, ignore_signals
from stages.device import leave_room, on_device
from stages.orphan import end_with_server
from stages.runtimes import device_of, open_denoiser
from wan import attention
from wan.parallel.team import Team, follow


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s rank: %(message)s")
    ignore_signals()
    end_with_server()
    pipe = Connection(int(sys.argv[1]))
    orders: Orders = pickle.loads(pipe.recv_bytes())
    device = device_of(orders.artifacts, orders.settings)
    if device.type == "cpu":
        torch.set_num_threads(orders.threads)
    try:
        with on_device(device):
            leave_room(orders.artifacts.manifest, "denoise", device)
            denoiser = open_denoiser(orders.artifacts, orders.settings)
            pipe.send_bytes(b"loaded")
            port, backend = pickle.loads(pipe.recv_bytes())
            dits = [expert.dit for expert in denoiser.experts]
            for dit in dits:  # as rank 0: each has measured for itself
                attention.use(dit, attention.choose(backend, device, dit.config.num_heads, dit.config.head_dim))
            follow(Team(orders.share, port, dits, orders.settings.rank_seconds), pipe)
    except (EOFError, BrokenPipeError):  # rank 0 ended meanwhile
        return


if __name__ == "__main__":
    main()
