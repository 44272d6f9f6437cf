"""Built-in architectures: sizes, arguments, names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.network.builtin import ARCHITECTURES, build, build_untrained
from pipeline.network.fcn import FCN
from pipeline.network.names import UNTRAINED, builtin_names
from pipeline.network.unet import UNet


@pytest.mark.parametrize("name", [n for n in UNTRAINED if "vgg16" not in n and n != "unet-large"])
def test_keeps_the_size_of_an_aligned_image(name: str) -> None:
    with torch.no_grad():
        assert build_untrained(name)(torch.rand(1, 3, 64, 96)).shape == (1, 2, 64, 96)


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_unet_with_every_norm_and_depth(norm: str, depth: int) -> None:
    network = build("unet", {"base": 6, "depth": depth, "norm": norm, "channels": 4, "classes": 5})
    kinds = {type(part) for part in network.modules()}
    assert (nn.BatchNorm2d in kinds, nn.GroupNorm in kinds) == (norm == "batch", norm == "group")
    with torch.no_grad():
        assert network(torch.rand(2, 4, 24, 40)).shape == (2, 5, 24, 40)


def test_unet_widths_double_at_each_level() -> None:
    network = UNet(base=5, depth=3)
    assert [stage[0].out_channels for stage in network.down] == [5, 10, 20, 40]
    assert sum(isinstance(part, nn.ConvTranspose2d) for part in network.modules()) == 3


@pytest.mark.parametrize(("variant", "skips"), [(32, 0), (16, 1), (8, 2)])
def test_fcn_fuses_the_scores_of_its_variant(variant: int, skips: int) -> None:
    network = FCN(variant, widths=(2, 2, 2, 2, 2), convolutions=(1, 1, 1, 1, 1), head=2)
    assert len(network.scores) == skips
    assert network.upsample.stride == (variant, variant)


@pytest.mark.parametrize("variant", [32, 16, 8])
def test_fcn_upsampling_starts_as_bilinear_interpolation(variant: int) -> None:
    layer = FCN(variant, widths=(2, 2, 2, 2, 2), convolutions=(1, 1, 1, 1, 1), head=2).upsample
    scores = torch.rand(1, 2, 6, 7)
    with torch.no_grad():
        expected = nn.functional.interpolate(scores, scale_factor=variant, mode="bilinear", align_corners=False)
        inner = slice(variant, -variant)  # at the border, zeros are interpolated with
        assert torch.allclose(layer(scores)[..., inner, inner], expected[..., inner, inner], atol=1e-6)


def test_vgg16_has_the_backbone_of_the_paper() -> None:
    with torch.device("meta"):
        network = build(*UNTRAINED["fcn8s-vgg16"])
    convolutions = [part for part in network.blocks.modules() if isinstance(part, nn.Conv2d)]
    assert len(convolutions) == 13
    assert sum(p.numel() for part in convolutions for p in part.parameters()) == 14_714_688


def test_the_first_step_normalises() -> None:
    plain = build("unet", {"base": 4, "depth": 1})
    normalised = build("unet", {"base": 4, "depth": 1}, {"scale": 1 / 255, "mean": [0.5, 0.4, 0.3], "std": 0.2})
    normalised.load_state_dict(plain.state_dict())
    image = torch.randint(0, 256, (1, 3, 16, 16)).float()
    by_hand = (image / 255 - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / 0.2
    with torch.no_grad():
        assert torch.allclose(normalised(image), plain(by_hand), atol=1e-5)


def test_weights_come_from_the_seed_and_leave_torch_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = build_untrained("unet-tiny"), build_untrained("unet-tiny"), build_untrained("unet-tiny", seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.classify.weight, same.classify.weight)
    assert not torch.equal(one.classify.weight, other.classify.weight)


def test_names_are_all_there_and_trained_ones_first() -> None:
    names = builtin_names()
    assert names[0] == "nuclei"
    assert {"unet", "unet-tiny", "fcn32s", "fcn16s", "fcn8s"} <= set(names)


def test_no_dropout_in_the_architectures() -> None:
    for name in ARCHITECTURES:
        assert not any(isinstance(part, nn.modules.dropout._DropoutNd) for part in build(name, {}).modules())


@pytest.mark.parametrize(
    ("architecture", "arguments", "said"),
    [
        ("resnet", {}, "architecture 'resnet' is unknown: one of fcn, unet"),
        ("unet", {"bose": 3}, "no argument 'bose': it takes base, depth, norm, channels, classes"),
        ("unet", {"base": "16"}, "base is '16'"),
        ("unet", {"base": 0}, "base is 0"),
        ("unet", {"base": True}, "base is True"),
        ("unet", {"depth": -1}, "depth is -1"),
        ("unet", {"norm": "layer"}, "norm 'layer': one of batch, group, none"),
        ("unet", {"norm": 3}, "norm is 3"),
        ("unet", {"normalise": {}}, "no argument 'normalise'"),
        ("fcn", {"variant": 4}, "variant 4: one of 32, 16, 8"),
        ("fcn", {"widths": [1, 2]}, "five numbers each"),
        ("fcn", {"widths": 16}, "widths is 16"),
        ("fcn", {"widths": [4, 4, 4, 4, 0]}, "widths is"),
    ],
)
def test_what_does_not_fit_is_named(architecture: str, arguments: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said.replace(".", r"\.")) as caught:
        build(architecture, arguments)
    assert "\n" not in str(caught.value)


def test_a_network_that_no_memory_holds_is_named_by_its_arguments() -> None:
    with pytest.raises(ValueError, match=r"^unet with base=1000000, depth=1 needs more memory than there is$"):
        build("unet", {"base": 10**6, "depth": 1})
