"""The gradient of tiles on any number of workers is that of whole images; what changes it, and what must not."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.network.fcn import FCN
from pipeline.network.unet import UNet
from pipeline.tiling.geometry import Interval, ReceptiveField, Region
from pipeline.training.gradient import Read, accumulate, reduce, stacks
from pipeline.training.loss import CrossEntropy, Dice, Focal, Loss, Total
from pipeline.training.pairs import IGNORE
from pipeline.training.sampling import Sample, Sampler, cut, dealt
from tests import zoo
from tests.training.drawn import Drawn, Plain, all_samples, cross_entropy, distance, gradient_of

TINY = {"widths": (2, 3, 3, 4, 4), "convolutions": (1, 1, 1, 1, 1), "head": 5}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "unet": lambda: UNet(3, 2, "none", channels=2, classes=3),
    "unet-frozen-batch-norm": lambda: statistics_(UNet(2, 2, "batch", channels=2, classes=3)),
    "fcn-8s": lambda: FCN(8, **TINY, channels=2, classes=3),
    "valid": lambda: nn.Sequential(nn.Conv2d(2, 4, 5), nn.ReLU(), nn.Conv2d(4, 3, (3, 2))),
    "coarse": lambda: nn.Sequential(zoo.conv(2, 4, stride=2), nn.ReLU(), zoo.conv(4, 4, 5, stride=2), zoo.conv(4, 3)),
    "stride-3": lambda: nn.Sequential(zoo.conv(2, 3, 5, stride=3), nn.ReLU(), zoo.up(3, "nearest"), zoo.conv(3, 3)),
    "reflect": lambda: nn.Sequential(nn.ReflectionPad2d(2), nn.Conv2d(2, 3, 5), nn.ReLU(), nn.Conv2d(3, 3, 1)),
}
EXACT = 1e-10


def statistics_(module: nn.Module) -> nn.Module:
    """Batch norm with statistics that are not those it starts from."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()  # type: ignore[union-attr]
            part.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return module


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=6)
@given(data=st.data())
def test_tiles_on_any_number_of_workers_have_the_gradient_of_whole_images(name: str, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.tuples(st.integers(8, 50), st.integers(8, 50)), min_size=1, max_size=2), "sizes")
    drawn = Drawn.random(NETWORKS[name], sizes, classes=3, seed=data.draw(st.integers(0, 9), "seed"))
    y, x = (a * data.draw(st.integers(-(-12 // a), -(-40 // a)), "core") for a in drawn.field.alignment)
    samples = all_samples(Sampler(drawn.cores("tiles", (y, x)), 1))
    whole = drawn.whole()
    for world in (1, 2, 3):
        found, sums = drawn.by_workers(samples, world)
        assert distance(found, whole) < EXACT
        assert sums.pixels == sum(int((labels != IGNORE).sum()) for labels in drawn.labels)


@pytest.mark.parametrize("name", ["unet", "coarse", "reflect"])
def test_a_read_one_alignment_step_too_small_has_another_gradient(name: str) -> None:
    """What the equality above would not show, were halos larger than they need to be."""
    drawn = Drawn.random(NETWORKS[name], [(64, 64)], classes=3)
    a = drawn.field.alignment[0]
    cores = drawn.cores("tiles", (16, 16) if a <= 16 else (a, a))
    samples = []
    for sample in all_samples(Sampler(cores, 1)):
        tile, grid = sample.tile, cores[0].grid
        y = tile.read.y
        if y.stop < 64:
            y = Interval(y.start, y.stop - a)
        read = Region(y, tile.read.x)
        samples.append(Sample(0, 0, type(tile)(0, tile.core, read, Region(grid.y.crop(tile.core.y, y), tile.crop.x))))
    assert distance(drawn.by_workers(samples, 1)[0], drawn.whole()) > EXACT


def test_patches_of_every_output_have_the_gradient_of_the_whole_image_and_a_part_of_them_has_not() -> None:
    drawn = Drawn.random(lambda: UNet(2, 1, "none", channels=2, classes=2), [(19, 22)])
    samples = all_samples(Sampler(drawn.cores("patches"), 1, seed=3))
    assert len(samples) == 19 * 22
    assert {sample.tile.core.shape for sample in samples} == {(1, 1)}
    reach = [sum(side) for side in zip(drawn.field.before, drawn.field.after, drawn.field.alignment, strict=True)]
    assert all(sample.tile.read.shape <= tuple(reach) for sample in samples)
    whole = drawn.whole()
    for together in (1, 7):
        assert distance(drawn.by_workers(samples, 2, together=together)[0], whole) < EXACT
    assert distance(drawn.by_workers(samples[: len(samples) // 2], 2)[0], whole) > 1e-3


@pytest.mark.parametrize("count", [12, 40])
def test_pixels_that_wait_for_others_to_share_a_pass_do_not_grow_with_the_batch(count: int) -> None:
    """Images of so many shapes that hardly any finds another of its own; the gradient is that of all at once."""
    sizes = [(8 + n % 11, 8 + n % 13) for n in range(count)]
    drawn = Drawn.random(lambda: nn.Sequential(zoo.conv(2, 3), nn.ReLU(), zoo.conv(3, 2)), sizes)
    samples = Sampler(drawn.cores("whole"), count, seed=1).step(0)
    held, most = set[int](), 0

    def counted() -> Iterator[Read]:
        nonlocal most
        for sample, pixels, labels in drawn.reads(samples):
            read = pixels.copy()
            held.add(id(read))
            weakref.finalize(read, held.discard, id(read))
            most = max(most, len(held))
            yield sample, read, labels
            del read

    drawn.module.zero_grad()
    reduce(drawn.module, accumulate(drawn.module, counted(), CrossEntropy(), together=4, grouped=True), lambda t: None)
    found = gradient_of(drawn.module)
    assert distance(found, drawn.whole()) < EXACT
    assert most <= 2 * 4


@settings(max_examples=50)
@given(st.lists(st.integers(1, 3), max_size=30), st.integers(1, 5), st.integers(1, 3))
def test_which_reads_share_a_pass_is_the_same_on_any_number_of_workers(
    widths: list[int], together: int, world: int
) -> None:
    """Those of one shape among so many places, also where some of these have no label and are not there."""
    one = Sample(0, 0, cut((4, 4), ReceptiveField((0, 0), (0, 0), (1, 1)), "whole", None).tile(0))
    reads = [(replace(one, at=at), np.zeros((1, 1, width)), torch.zeros(())) for at, width in enumerate(widths)
             if at % 7 != 3]  # fmt: skip
    expected: dict[tuple[int, int], list[int]] = {}
    for sample, pixels, _ in reads:
        expected.setdefault((sample.at // together, pixels.shape[2]), []).append(sample.at)
    found = []
    for rank in range(world):
        mine = dealt([sample for sample, _, _ in reads], rank, world, together)
        found += [[sample.at for sample, _, _ in stack]
                  for stack in stacks([read for read in reads if read[0] in mine], together, grouped=True)]  # fmt: skip
    assert sorted(found) == sorted(expected.values())


WEIGHTS = (0.5, 2.0, 7.0)


def labelled(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (n, classes), two of one, and labels of what is not ignored."""
    both = logits if logits.shape[1] > 1 else torch.cat([torch.zeros_like(logits), logits], 1)
    return both[labels != IGNORE], labels[labels != IGNORE]


def weighted_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(*labelled(logits, labels), torch.tensor(WEIGHTS, dtype=torch.float64))


def focal(logits: Tensor, labels: Tensor, gamma: float = 2, weights: tuple[float, ...] | None = None) -> Tensor:
    """A loop over outputs of equation 5 of the paper."""
    total, divisor = torch.zeros((), dtype=torch.float64), 0.0
    for z, label in zip(*labelled(logits, labels), strict=True):
        p = z.softmax(0)[label]
        alpha = 1.0 if weights is None else weights[int(label)]
        total = total - alpha * (1 - p) ** gamma * p.log()
        divisor += alpha
    return total / divisor


def dice(logits: Tensor, labels: Tensor, weights: tuple[float, ...] | None = None) -> Tensor:
    logits, labels = labelled(logits, labels)
    found, shares = [], []
    for k in labels.unique():
        p, g = logits.softmax(1)[:, k], (labels == k).double()
        found.append(2 * (p @ g) / (p @ p + g @ g))
        shares.append(1.0 if weights is None else weights[int(k)])
    return 1 - (torch.stack(found) @ torch.tensor(shares).double()) / sum(shares)


LOSSES: dict[str, tuple[Loss, Plain]] = {
    "cross entropy": (CrossEntropy(), cross_entropy),
    "weighted": (CrossEntropy(WEIGHTS), weighted_cross_entropy),
    "focal": (Focal(), focal),
    "weighted focal": (Focal(WEIGHTS, 0.5), lambda z, y: focal(z, y, 0.5, WEIGHTS)),
    "dice": (Dice(classes=3), dice),
    "weighted dice": (Dice(WEIGHTS, 3), lambda z, y: dice(z, y, WEIGHTS)),
    "linear sum": (
        Total(terms=[(1, CrossEntropy()), (3, Focal())]),
        lambda z, y: cross_entropy(z, y) + 3 * focal(z, y),
    ),
    "sum": (
        Total(WEIGHTS, [(0.5, CrossEntropy(WEIGHTS)), (2, Dice(WEIGHTS, 3)), (1, Focal(WEIGHTS))]),
        lambda z, y: 0.5 * weighted_cross_entropy(z, y) + 2 * dice(z, y, WEIGHTS) + focal(z, y, 2, WEIGHTS),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_of_tiles_on_any_number_of_workers_has_the_gradient_of_whole_images(name: str) -> None:
    """Two images; one class is missing in some tiles, and some tiles have no label at all."""
    drawn = Drawn.random(NETWORKS["unet"], [(40, 33), (19, 26)], classes=3)
    drawn.labels[0][:24, :20][drawn.labels[0][:24, :20] == 2] = 1
    drawn.labels[1][:8, :8] = IGNORE
    loss, plain = LOSSES[name]
    whole = drawn.whole(plain)
    for core, world in (((16, 16), 1), ((8, 28), 2), ((20, 12), 3)):
        samples = all_samples(Sampler(drawn.cores("tiles", core), 1))
        found, sums = drawn.by_workers(samples, world, loss)
        assert distance(found, whole) < EXACT
        assert abs((sums.value(loss) or 0) - drawn.value(plain)) < EXACT
    if name != "cross entropy":
        assert distance(drawn.by_workers(samples, 3)[0], whole) > 1e-3


def test_dice_of_each_tile_by_itself_has_another_gradient() -> None:
    drawn = Drawn.random(NETWORKS["unet"], [(40, 33)], classes=3)
    samples = all_samples(Sampler(drawn.cores("tiles", (8, 8)), 1))
    each = sum(drawn.by_workers([sample], 1, Dice(classes=3))[0] for sample in samples) / len(samples)
    assert distance(torch.as_tensor(each), drawn.whole(dice)) > 1e-3


def test_dice_keeps_the_same_outputs_in_both_passes() -> None:
    """Its gradient is that of the whole image without the labels that were not kept."""
    drawn = Drawn.random(NETWORKS["unet"], [(40, 33)], classes=3)
    sampler = Sampler(drawn.cores("tiles", (16, 16)), "image", keep=0.5, seed=1)
    samples = sampler.step(0)[: len(sampler.cores[0])]
    found, _ = drawn.by_workers(samples, 2, Dice(classes=3), kept=sampler.kept, keep=0.5)
    for sample in samples:
        drawn.labels[0][sample.tile.core.slices][~sampler.kept(sample)] = IGNORE
    assert distance(found, drawn.whole(dice)) < EXACT


def test_a_class_that_is_not_in_the_batch_is_left_out_of_dice() -> None:
    """What is nowhere has no overlap; a batch of nothing but that has no gradient, and is no error."""
    drawn = Drawn.random(NETWORKS["unet"], [(20, 20)], classes=3)
    drawn.labels[0][drawn.labels[0] == 1] = 2
    samples = all_samples(Sampler(drawn.cores("tiles", (8, 8)), 1))
    assert distance(drawn.by_workers(samples, 2, Dice(classes=3))[0], drawn.whole(dice)) < EXACT
    gradient, sums = drawn.by_workers(samples, 2, Dice((0, 1, 0), 3))
    assert not gradient.any() and sums.value(Dice((0, 1, 0), 3)) is None


def test_what_a_worker_cannot_read_is_known_to_all_in_either_pass() -> None:
    drawn = Drawn.random(NETWORKS["unet"], [(20, 20)], classes=3)
    samples = all_samples(Sampler(drawn.cores("tiles", (8, 8)), 1))
    times = []

    def broken(mine: list[Sample]) -> Iterator[Read]:
        times.append(mine)
        if samples[0] in mine and len(times) >= at:
            raise ValueError("cut short")
        yield from Drawn.reads(drawn, mine)

    for at in (1, 3):
        times.clear()
        drawn.reads = broken  # type: ignore[method-assign, assignment]
        _, sums = drawn.by_workers(samples, 2, Dice(classes=3))
        assert sums.failed == 1 and len(times) == at + 1


@pytest.mark.parametrize("weights", [None, [0.25, 3.0]])
def test_one_channel_is_the_logit_of_class_1(weights: list[float] | None) -> None:
    """A loss of z is that of two channels whose logits are 0 and z."""
    random = torch.Generator().manual_seed(0)
    z = torch.randn(1, 9, 9, generator=random, dtype=torch.float64)
    labels = torch.randint(0, 2, (9, 9), generator=random)
    labels[3:5] = IGNORE
    both = torch.cat([torch.zeros_like(z), z])
    for loss in (CrossEntropy(weights), Focal(weights), Dice(weights)):
        assert torch.allclose(loss.sums(z, labels), loss.sums(both, labels), atol=1e-12)


def test_keeping_the_loss_of_all_outputs_is_the_same_bit_for_bit_as_not_asking() -> None:
    drawn = Drawn.random(NETWORKS["unet"], [(40, 33)], classes=3)
    sampler = Sampler(drawn.cores("tiles", (16, 16)), "image", keep=1.0)
    samples = sampler.step(0)
    asked, _ = drawn.by_workers(samples, 2, kept=sampler.kept, keep=1.0)
    assert torch.equal(asked, drawn.by_workers(samples, 2)[0])


def test_the_mean_gradient_of_kept_losses_approaches_the_full_one() -> None:
    """At 1 / sqrt(draws), from the same tiles and the whole image; the divisor is not what was kept."""
    drawn = Drawn.random(lambda: nn.Sequential(zoo.conv(2, 3), nn.ReLU(), zoo.conv(3, 2)), [(24, 24)])
    whole, draws = drawn.whole(), []
    sampler = Sampler(drawn.cores("tiles", (8, 8)), "image", keep=0.25, seed=1)
    samples = [sample for step in range(100) for sample in sampler.step(step)]
    assert len(samples) == 400 * 9 and len({sample.number for sample in samples}) == len(samples)
    for image in range(400):
        part = samples[9 * image : 9 * image + 9]
        draws.append(drawn.by_workers(part, 1, kept=sampler.kept, keep=0.25)[0])
    drawn_gradients = torch.stack(draws)
    error = (drawn_gradients.mean(0) - whole) / (drawn_gradients.std(0) / len(draws) ** 0.5)
    assert error.abs().max() < 4, "more than four standard errors off"
    assert distance(draws[0], whole) > 1e-3


def test_a_batch_without_labels_and_a_worker_without_samples_have_no_gradient() -> None:
    drawn = Drawn.random(NETWORKS["unet"], [(20, 20)], classes=3)
    drawn.module.zero_grad()
    sums = reduce(drawn.module, accumulate(drawn.module, [], CrossEntropy()), lambda tensor: None)
    assert not sums.of_loss.any() and sums.weight == sums.pixels == 0 and not gradient_of(drawn.module).any()
    drawn.labels[0][:] = IGNORE
    gradient, sums = drawn.by_workers(all_samples(Sampler(drawn.cores("tiles", (8, 8)), 1)), 2)
    assert sums.pixels == 0 and sums.weight == 0 and not gradient.any()


def test_labels_that_are_ignored_do_not_matter() -> None:
    drawn = Drawn.random(NETWORKS["unet"], [(20, 20)], classes=3)
    assert any((labels == IGNORE).any() for labels in drawn.labels)
    samples = all_samples(Sampler(drawn.cores("tiles", (8, 8)), 1))
    gradient = drawn.by_workers(samples, 1)[0]
    drawn.labels[0] = np.where(drawn.labels[0] == IGNORE, 0, drawn.labels[0])
    assert distance(drawn.by_workers(samples, 1)[0], gradient) > 1e-3


def spawned(rank: int, world: int, port: int, results: str) -> None:
    """One worker of a real process group."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    drawn = Drawn.random(NETWORKS["unet"], [(40, 33)], classes=3)
    samples = all_samples(Sampler(drawn.cores("tiles", (16, 16)), 1))
    sums = accumulate(drawn.module, drawn.reads(samples[rank::world]), CrossEntropy())

    def add(tensor: Tensor) -> None:
        dist.all_reduce(tensor)

    reduce(drawn.module, sums, add)
    torch.save(gradient_of(drawn.module), f"{results}/{rank}.pt")
    dist.destroy_process_group()


def test_a_real_process_group_has_the_gradient_of_the_whole_image(tmp_path: object) -> None:
    import torch.multiprocessing as mp

    from tests.ray_head import free_ports

    mp.spawn(spawned, (2, free_ports(1)[0], str(tmp_path)), nprocs=2)
    drawn = Drawn.random(NETWORKS["unet"], [(40, 33)], classes=3)
    whole = drawn.whole()
    a, b = (torch.load(f"{tmp_path}/{rank}.pt") for rank in range(2))
    assert torch.equal(a, b) and distance(a, whole) < EXACT
