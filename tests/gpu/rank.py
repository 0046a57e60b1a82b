"""One of the ranks that ``tests.gpu`` starts: what they say to each other over NCCL arrives."""

from __future__ import annotations

import torch
import torch.distributed as dist

from clpdd.distributed.group import Ranks


def main() -> None:
    """Sum and gather on this rank's device. One rank makes a group as well here, which the library spares itself."""
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    ranks = Ranks(rank, size, rank, _devices=dist.new_group(backend="nccl"))
    own = torch.arange(6.0, device=device).view(2, 3) + rank
    gathered = ranks._all(own)
    assert [float(one[0, 0]) for one in gathered] == list(range(size))
    total = own.clone()
    dist.all_reduce(total, group=ranks._devices)
    assert torch.equal(total, torch.stack(gathered).sum(0))
    assert ranks.all_gather_object(rank) == list(range(size))
    if size > 1:
        (summed,) = ranks.all_reduce(own)
        assert torch.equal(summed, total)
    dist.destroy_process_group()
    print(f"{size} of {size} heard")


if __name__ == "__main__":
    main()
