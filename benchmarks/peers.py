"""Networks of other people's libraries, with random weights: what `networks.py` runs."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Peer:
    """One network of a library; `channels` goes in, and `output` names the result where there are several."""

    library: str
    name: str
    build: Callable[[], nn.Module]
    channels: int = 3
    output: str | int | None = None


class Head(nn.Module):
    """A classifier's feature maps with a 1 x 1 convolution on top: a fully convolutional network."""

    def __init__(self, trunk: nn.Module, features: int, level: int | None = None, channels_last: bool = False) -> None:
        super().__init__()
        self.trunk, self.level, self.channels_last = trunk, level, channels_last
        self.head = nn.Conv2d(features, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.trunk(x)
        maps = maps if self.level is None else maps[self.level]
        result: Tensor = self.head(maps.permute(0, 3, 1, 2) if self.channels_last else maps)
        return result


def add_missing_operators() -> Any:
    """Without a GPU build of torch, torchvision does not find its own operators; nothing here calls them."""
    try:
        importlib.import_module("torchvision")
        return None
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library


def segmentation_models(smp: Any) -> Iterator[Peer]:
    def peer(architecture: str, encoder: str, note: str = "", **options: Any) -> Peer:
        options = {"encoder_name": encoder, "encoder_weights": None, "classes": 2, **options}
        return Peer("smp", f"{architecture} {encoder}{note}", lambda: getattr(smp, architecture)(**options))

    for architecture in ("Unet", "UnetPlusPlus", "FPN", "Linknet", "MAnet", "PSPNet", "PAN", "DeepLabV3",
                         "DeepLabV3Plus", "UPerNet", "Segformer"):  # fmt: skip
        yield peer(architecture, "resnet18")
    for encoder in ("mobilenet_v2", "efficientnet-b0", "vgg11_bn", "densenet121", "mobileone_s0", "mit_b0",
                    "timm-regnetx_002", "timm-skresnet18", "tu-convnext_atto", "tu-hrnet_w18_small", "xception",
                    "dpn68", "inceptionv4", "timm-res2net50_26w_4s"):  # fmt: skip
        yield peer("Unet", encoder)
    yield peer("Unet", "resnet18", ", scse", decoder_attention_type="scse")
    yield peer("Unet", "resnet18", ", bilinear", decoder_interpolation="bilinear")
    yield peer("Unet", "resnet18", ", depth 3", encoder_depth=3, decoder_channels=(64, 32, 16))
    yield peer("Linknet", "mobilenet_v2")
    yield peer("Segformer", "mit_b0")
    yield peer("DPT", "tu-vit_tiny_patch16_224")


def monai(nets: Any) -> Iterator[Peer]:
    def peer(name: str, note: str = "", output: int | None = None, **options: Any) -> Peer:
        return Peer("MONAI", name + note, lambda: getattr(nets, name)(**options), 1, output)

    plane: dict[str, Any] = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
    unet = {**plane, "channels": (8, 16, 32), "strides": (2, 2)}
    batch = ("batch", {"affine": True})
    yield peer("UNet", **unet)
    yield peer("UNet", ", batch norm", norm="batch", num_res_units=2, **unet)
    yield peer("UNet", ", batch norm, kernel 5", norm="batch", kernel_size=5, up_kernel_size=5, **unet)
    yield peer("BasicUNet", **plane)
    yield peer("BasicUNet", ", batch norm", norm="batch", **plane)
    yield peer("BasicUNet", ", batch norm, bilinear", norm="batch", upsample="nontrainable", **plane)
    yield peer("BasicUNetPlusPlus", ", batch norm", 0, norm="batch", **plane)
    yield peer("AttentionUnet", **unet)
    yield peer("SegResNet", **plane)
    yield peer("SegResNet", ", batch norm", norm=batch, **plane)
    yield peer("SegResNetDS", ", batch norm", spatial_dims=2, in_channels=1, out_channels=2, norm="batch")
    nnunet = {**plane, "kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]}
    yield peer("DynUNet", **nnunet)
    yield peer("DynUNet", ", batch norm", norm_name=batch, **nnunet)
    yield peer("VNet", **plane)
    yield peer("FlexibleUNet", " resnet18", in_channels=1, out_channels=2, backbone="resnet18")
    yield peer("FlexibleUNet", " efficientnet-b0", in_channels=1, out_channels=2, backbone="efficientnet-b0")
    yield peer("UNETR", img_size=96, feature_size=8, hidden_size=48, mlp_dim=96, num_heads=4, **plane)
    yield peer("SwinUNETR", feature_size=12, **plane)
    yield peer("HighResNet", ", batch norm", **plane)
    yield peer("RegUNet", num_channel_initial=8, depth=2, **plane)
    yield peer("MedNeXtS", spatial_dims=2, in_channels=1, out_channels=2)
    yield peer("HoVerNet", " fast", "nucleus_prediction", mode="fast", in_channels=1)
    yield peer("AutoEncoder", ", batch norm", norm="batch", **plane, channels=(8, 16), strides=(2, 2))
    yield peer("PatchDiscriminator", ", last map", 4, spatial_dims=2, in_channels=1, channels=8)


def torchvision(package: Any) -> Iterator[Peer]:
    models, none = importlib.import_module("torchvision.models"), {"weights": None}
    for name in ("fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"):
        build = getattr(models.segmentation, name)
        yield Peer("torchvision", name, lambda build=build: build(weights_backbone=None, **none), output="out")
    trunks = {"vgg11": 512, "mobilenet_v2": 1280, "squeezenet1_1": 512, "densenet121": 1024, "efficientnet_b0": 1280,
              "convnext_tiny": 768, "swin_t": 768, "alexnet": 256}  # fmt: skip
    for name, features in trunks.items():
        build = getattr(models, name)
        yield Peer("torchvision", f"{name}.features", lambda b=build, n=features: Head(_channels_first(b(**none)), n))


def _channels_first(classifier: Any) -> nn.Module:
    """The feature maps of a classifier as (n, c, y, x)."""
    return nn.Sequential(classifier.features, *([classifier.permute] if hasattr(classifier, "permute") else []))


def timm(package: Any) -> Iterator[Peer]:
    for name, level in {
        "resnet18": 3, "convnext_atto": 2, "hrnet_w18_small": 2, "efficientnet_lite0": 3, "repvgg_a0": 3, "dla34": 3,
        "mobilenetv4_conv_small": 3, "cspdarknet53": 3, "regnetx_002": 3, "poolformer_s12": 2, "inception_next_tiny": 2,
        "xception41": 2, "ghostnet_100": 3, "starnet_s1": 2, "fastvit_t8": 2, "resnetv2_50": 2, "dm_nfnet_f0": 2,
        "swin_tiny_patch4_window7_224": 2, "edgenext_xx_small": 2, "mobilevit_xxs": 3, "ese_vovnet19b_dw": 3,
        "selecsls42": 3, "mambaout_femto": 2, "rdnet_tiny": 2, "darknetaa53": 3, "pvt_v2_b0": 2, "focalnet_tiny_srf": 2,
        "efficientformer_l1": 2, "maxvit_nano_rw_256": 2,
    }.items():  # fmt: skip

        def build(name: str = name, level: int = level) -> nn.Module:
            trunk = package.create_model(name, pretrained=False, features_only=True)
            last = str(getattr(trunk, "output_fmt", "")).endswith("NHWC")
            return Head(trunk, trunk.feature_info.channels()[level], level, last)

        yield Peer("timm", name, build)


def spandrel(package: Any) -> Iterator[Peer]:
    """Restoration and super-resolution; outputs finer than the input, mostly."""

    def peer(name: str, inner: str = "", note: str = "", channels: int = 3, **options: Any) -> Peer:
        module = f"spandrel.architectures.{name}"
        return Peer("spandrel", (inner or name) + note, lambda: getattr(
            importlib.import_module(module), inner or name)(**options), channels)  # fmt: skip

    yield peer("ESRGAN", num_filters=16, num_blocks=2, scale=4)
    yield peer("ESRGAN", note=", unshuffled", num_filters=16, num_blocks=2, scale=4, shuffle_factor=4, in_nc=48)
    yield peer("Compact", num_feat=16, num_conv=4, upscale=2)
    yield peer("DnCNN", in_nc=3, out_nc=3, nb=9, nc=16)
    yield peer("DRUNet", in_nc=3, nc=[8, 16, 32, 64], nb=1)
    yield peer("SPAN", feature_channels=16, num_in_ch=3, num_out_ch=3, upscale=2)
    yield peer("PLKSR", dim=16, n_blocks=3, use_ea=False, upscaling_factor=2)
    yield peer("PLKSR", "RealPLKSR", dim=16, n_blocks=3, use_ea=False, upscaling_factor=2)
    yield peer("SCUNet", dim=64, config=[1] * 7)
    yield peer("SwinIR", depths=[2], num_heads=[2], embed_dim=16, window_size=8)
    yield peer("SAFMN", dim=16, n_blocks=2)
    yield peer("RCAN", n_resgroups=1, n_resblocks=2, n_feats=16, reduction=4)
    yield peer("NAFNet", width=8, enc_blk_nums=[1, 1], middle_blk_num=1, dec_blk_nums=[1, 1])
    yield peer("RealCUGAN", "UpCunet2x")
    yield peer("RealCUGAN", "UpCunet2x_fast")
    yield peer("Uformer", embed_dim=8, img_size=128)
    yield peer("HAT", embed_dim=16, depths=(2,), num_heads=(2,), window_size=8, squeeze_factor=4)
    yield peer("OmniSR", num_feat=16, res_num=1, window_size=8)
    yield peer("KBNet", "KBNet_s", width=8)
    yield peer("FFTformer", dim=8, num_blocks=[1, 1, 1])
    yield peer("MoSR", n_block=2, dim=16, upscale=2)
    yield peer("DITN", dim=16)
    yield peer("SwiftSRGAN", num_channels=16, num_blocks=2)
    yield peer("MixDehazeNet")
    yield peer("RetinexFormer", n_feat=8)


def kornia(package: Any) -> Iterator[Peer]:
    yield Peer("kornia", "DexiNed", lambda: importlib.import_module("kornia.models.dexined").DexiNed(False), output=6)
    yield Peer("kornia", "SmallSRNet", lambda: importlib.import_module("kornia.models.small_sr").SmallSRNet(
        3, pretrained=False), 1)  # fmt: skip
    yield Peer("kornia", "RRDBNet", lambda: importlib.import_module("kornia.models.rrdbnet").RRDBNet(3, 3, 2, 16, 2))
    filters = package.filters
    yield Peer("kornia", "GaussianBlur2d", lambda: filters.GaussianBlur2d((5, 9), (1.5, 2.5)))
    yield Peer("kornia", "GaussianBlur2d, circular", lambda: filters.GaussianBlur2d((5, 5), (1.5, 1.5), "circular"))
    yield Peer("kornia", "MedianBlur", lambda: filters.MedianBlur(5))
    yield Peer("kornia", "Sobel", lambda: filters.Sobel())
    yield Peer("kornia", "BilateralBlur", lambda: filters.BilateralBlur((5, 5), 0.1, (1.5, 1.5)))
    yield Peer("kornia", "GuidedBlur of itself", lambda: Guided(filters))
    yield Peer("kornia", "Canny, magnitude", lambda: filters.Canny(hysteresis=False), output=0)
    feature = package.feature
    yield Peer("kornia", "CornerHarris", lambda: feature.CornerHarris(0.04), 1)
    yield Peer("kornia", "DISK U-Net", lambda: feature.DISK().unet)
    yield Peer("kornia", "KeyNet", lambda: feature.KeyNet(False), 1)


class Guided(nn.Module):
    """The guided filter of He et al. with the image as its own guide."""

    def __init__(self, filters: Any) -> None:
        super().__init__()
        self.blur = filters.GuidedBlur(5, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.blur(x, x)
        return result


def microscopy(package: Any) -> Iterator[Peer]:
    """Networks of tools for microscopy and medicine."""
    cellpose = importlib.import_module("cellpose.resnet_torch")
    yield Peer("cellpose", "CPnet", lambda: cellpose.CPnet([2, 8, 16, 32], 3, 3), 2, 0)
    plantseg = importlib.import_module("pytorch3dunet.unet3d.model")
    small = {"f_maps": 8, "num_levels": 4}
    yield Peer("pytorch3dunet", "UNet2D", lambda: plantseg.UNet2D(1, 2, **small), 1)
    yield Peer("pytorch3dunet", "UNet2D, batch norm", lambda: plantseg.UNet2D(1, 2, layer_order="bcr", **small), 1)
    yield Peer("pytorch3dunet", "ResidualUNet2D, no norm", lambda: plantseg.ResidualUNet2D(
        1, 2, layer_order="cr", **small), 1)  # fmt: skip
    dna = importlib.import_module("dynamic_network_architectures.architectures.unet")
    nnunet: dict[str, Any] = {
        "input_channels": 1, "n_stages": 4, "features_per_stage": [8, 16, 32, 64], "conv_op": nn.Conv2d,
        "kernel_sizes": 3, "strides": [1, 2, 2, 2], "num_classes": 2, "n_conv_per_stage_decoder": [2, 2, 2],
        "nonlin": nn.LeakyReLU, "conv_bias": True,
    }  # fmt: skip
    yield Peer("nnU-Net", "PlainConvUNet", lambda: dna.PlainConvUNet(
        n_conv_per_stage=2, norm_op=nn.InstanceNorm2d, **nnunet), 1)  # fmt: skip
    yield Peer("nnU-Net", "PlainConvUNet, batch norm", lambda: dna.PlainConvUNet(
        n_conv_per_stage=2, norm_op=nn.BatchNorm2d, **nnunet), 1)  # fmt: skip
    yield Peer("nnU-Net", "ResidualEncoderUNet, batch norm", lambda: dna.ResidualEncoderUNet(
        n_blocks_per_stage=2, norm_op=nn.BatchNorm2d, **nnunet), 1)  # fmt: skip
    unet = importlib.import_module("unet")
    tiny = {"num_encoding_blocks": 3, "out_channels_first_layer": 8}
    yield Peer("unet", "UNet2D, valid", lambda: unet.UNet2D(**tiny), 1)
    yield Peer("unet", "UNet2D, padded", lambda: unet.UNet2D(padding=1, normalization="batch", **tiny), 1)
    yield Peer("unet", "UNet2D, residual, bilinear", lambda: unet.UNet2D(
        padding=1, residual=True, upsampling_type="linear", **tiny), 1)  # fmt: skip
    xunet = importlib.import_module("x_unet")
    yield Peer(
        "x-unet",
        "XUnet",
        lambda: xunet.XUnet(
            8,
            dim_mults=(1, 2, 4),
            num_blocks_per_stage=(1, 1, 1),
            num_self_attn_per_stage=(0, 0, 1),
            nested_unet_depths=(1, 0, 0),
        ),
    )
    tiramisu = importlib.import_module("tiramisu_brulee.model")
    yield Peer(
        "tiramisu",
        "Tiramisu2d",
        lambda: tiramisu.Tiramisu2d(
            in_channels=1,
            out_channels=2,
            down_blocks=(2, 2),
            up_blocks=(2, 2),
            bottleneck_layers=2,
            growth_rate=8,
            first_conv_out_channels=16,
        ),
        1,
    )
    elektronn = "elektronn3.models."
    yield Peer("elektronn3", "UNet", lambda: importlib.import_module(elektronn + "unet").UNet(
        1, 2, n_blocks=3, start_filts=8, dim=2, normalization="batch"), 1)  # fmt: skip
    yield Peer("elektronn3", "UNet, valid", lambda: importlib.import_module(elektronn + "unet").UNet(
        1, 2, n_blocks=3, start_filts=8, dim=2, normalization="none", conv_mode="valid"), 1)  # fmt: skip
    yield Peer("elektronn3", "MSDNet", lambda: importlib.import_module(elektronn + "msdnet").MSDNet(
        1, 2, 20, volumetric=False), 1)  # fmt: skip
    yield Peer("elektronn3", "FCDenseNet", lambda: importlib.import_module(elektronn + "tiramisu_2d").FCDenseNet(
        1, (2, 2), (2, 2), 2, 8, 16, 2), 1)  # fmt: skip


LIBRARIES: dict[str, Callable[[Any], Iterator[Peer]]] = {
    "segmentation_models_pytorch": segmentation_models, "monai.networks.nets": monai, "torchvision": torchvision,
    "timm": timm, "spandrel": spandrel, "kornia": kornia, "unet": microscopy,
}  # fmt: skip


def peers() -> Iterator[Peer]:
    """All networks of the libraries, in order."""
    for name, listed in LIBRARIES.items():
        yield from listed(importlib.import_module(name))
