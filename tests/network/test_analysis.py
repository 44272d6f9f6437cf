"""What is named where the analysis cannot follow an operation, or sees one size of image only."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.network.receptive_field import UnknownOperation, receptive_field
from tests.zoo import Apply, chain, conv


class ClassToken(nn.Module):
    """A transformer block over all places of the image and one token more, of which only the places go on."""

    def __init__(self, attention: bool) -> None:
        super().__init__()
        self.patch = nn.Conv2d(2, 8, 8, stride=8)
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        maps = self.patch(x)
        tokens = torch.cat([torch.ones(1, 1, 8), maps.flatten(2).transpose(1, 2)], 1)
        if self.attention:
            tokens = F.scaled_dot_product_attention(tokens, tokens, tokens)
        return tokens[:, 1:].transpose(1, 2).reshape(maps.shape)


def test_attention_behind_a_class_token_is_named():
    named = receptive_field(ClassToken(True), 2).nonlocal_operations
    assert any("attention over the image" in line for line in named), named
    assert any(": cat: " in line for line in named), "what is not known comes after what is not local"


def test_a_class_token_alone_is_not_known_rather_than_not_local():
    with pytest.raises(UnknownOperation, match="cat"):
        receptive_field(ClassToken(False), 2)


def test_slices_of_a_network_of_one_size_are_no_obstacle_of_their_own():
    def of_size(x: Tensor) -> Tensor:
        if tuple(x.shape[2:]) != (96, 96):
            raise ValueError("images of 96 x 96 only")
        return x[:, :, 1:-1, 1:-1]

    named = receptive_field(chain(conv(2, 2), of_size).eval(), 2).nonlocal_operations
    assert named == ("network: fixed size: it works on images of 96 x 96 only",)


def test_matrices_at_each_place_are_local_and_of_rows_are_not():
    def solved(x: Tensor) -> Tensor:
        maps = F.avg_pool2d(x, 3, 1, 1).permute(0, 2, 3, 1)
        matrices = maps.unsqueeze(-1) * maps.unsqueeze(-2) + torch.eye(2)
        return torch.linalg.solve(matrices, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    field = receptive_field(Apply(solved), 2)
    assert (field.before, field.after) == ((1, 1), (1, 1))
    rows = receptive_field(Apply(lambda x: torch.linalg.matrix_exp(x @ x.mT)), 2)
    assert not rows.is_local
