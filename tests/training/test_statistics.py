"""Running statistics are those of all pixels of a step, however these are cut into tiles and shared out."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.training.statistics import Statistics


def test_running_statistics_move_by_those_of_all_pixels_together() -> None:
    """Tiles of unlike brightness and size, of two workers, against torch's own batch norm on all pixels at once."""
    torch.manual_seed(0)
    tiles = [torch.randn(1, 3, 8, 8 + 4 * n, dtype=torch.float64) + 5 * n for n in range(3)]
    ours, theirs = nn.BatchNorm2d(3).double(), nn.BatchNorm2d(3).double()
    other = nn.BatchNorm2d(3).double()
    for step in range(2):
        theirs(torch.cat([tile.flatten(2)[..., None] for tile in tiles], 2) + step)
    mine, their = Statistics(ours), Statistics(other)
    for step in range(2):
        mine.begin()
        their.begin()
        ours(tiles[0] + step)
        with torch.no_grad():  # a first pass, which gathers the sums of a loss
            ours(tiles[1] + 9)
        ours(tiles[2] + step)
        other(tiles[1] + step)
        theirs_of_step = {id(of): of.clone() for of in their.seen.values()}
        mine.end(lambda of, more=theirs_of_step: of.add_(*more.values()))  # type: ignore[misc]
        their.end(lambda of: None)
    assert torch.allclose(ours.running_mean, theirs.running_mean, rtol=1e-12)
    assert torch.allclose(ours.running_var, theirs.running_var, rtol=1e-12)
    assert ours.num_batches_tracked == other.num_batches_tracked == 2
    ours(tiles[0])  # between steps nothing counts
    assert torch.allclose(ours.running_mean, theirs.running_mean, rtol=1e-12)
    assert not torch.allclose(ours.running_var, other.running_var, rtol=0.1)


def test_a_step_without_pixels_moves_nothing() -> None:
    norm = nn.BatchNorm2d(2)
    statistics = Statistics(norm)
    statistics.begin()
    statistics.end(lambda of: None)
    assert norm.running_mean.tolist() == [0, 0] and norm.running_var.tolist() == [1, 1]
    assert not Statistics(norm.eval()).norms
