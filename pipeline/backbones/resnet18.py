"""ResNet-18 for small images, the network of DER++'s experiments.

He et al. 2016 (arXiv:1512.03385) with the stem of its CIFAR networks: one 3x3 convolution of stride 1, no pooling.
Legend: B = rows, C = channels, H/W = height/width, D = channels of the last stage
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.backbones.backbone import Backbone
from pipeline.sample import InputSpec
from pipeline.settings_section import Section, fixed
from pipeline.state import Json
from pipeline.user_error import UserError

_SMALLEST_SIDE = 8  # three halvings leave one pixel


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet18(Backbone):
    """Four stages of two blocks; features after global average pooling. The shortcuts tie a stage's channels to each
    other, so that each stage has one number of them."""

    name = "resnet18"
    kinds = frozenset({"image"})
    prefers_bfloat16 = True

    class Config(Section):
        width: int = fixed(64, ge=1, le=4096, why="channels of the first stage; the next have 2, 4 and 8 times as many")
        channels: tuple[Annotated[int, Field(ge=1, le=2**15)], ...] | None = fixed(
            None, min_length=4, max_length=4, why="of each stage, where they are others, as after pruning"
        )

    def __init__(self, config: Section, spec: InputSpec) -> None:
        super().__init__(config, spec)
        assert isinstance(config, ResNet18.Config)
        channels, height, width = spec.shape
        if min(height, width) < _SMALLEST_SIDE:
            raise UserError(
                f"images of {height}x{width} are too small for backbone 'resnet18': set input.shape to "
                f"{_SMALLEST_SIDE}x{_SMALLEST_SIDE} at least, or network.backbone to mlp"
            )
        of_stages = config.channels or tuple(config.width * 2**stage for stage in range(4))
        self.stem = nn.Conv2d(channels, of_stages[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(of_stages[0])
        blocks: list[nn.Module] = []
        channels_in = of_stages[0]
        for stage, channels_out in enumerate(of_stages):
            blocks += [_Block(channels_in, channels_out, 1 if stage == 0 else 2), _Block(channels_out, channels_out, 1)]
            channels_in = channels_out
        self.blocks = nn.Sequential(*blocks)
        self.width = channels_in

    @property
    def resolved_options(self) -> dict[str, Json]:
        """Without `channels` where they follow from the width: as states of before they could be others have it."""
        options = super().resolved_options
        return {name: value for name, value in options.items() if name != "channels" or value is not None}

    @property
    def measured_options(self) -> dict[str, Json] | None:
        last = (self.blocks[2 * stage + 1] for stage in range(4))
        return {"channels": [block.bn2.num_features for block in last if isinstance(block, _Block)]}

    @property
    def stages(self) -> Sequence[Sequence[nn.Module]]:
        """The stem belongs to the first."""
        stages: list[list[nn.Module]] = []
        for stage in range(4):
            blocks = [self.blocks[2 * stage], self.blocks[2 * stage + 1]]
            modules = [module for block in blocks for module in block.modules() if not list(module.children())]
            stem = [self.stem, self.bn] if stage == 0 else []
            stages.append([*stem, *(module for module in modules if isinstance(module, nn.Conv2d | nn.BatchNorm2d))])
        return stages

    def forward(self, x: Tensor) -> Tensor:
        out = self.blocks(F.relu(self.bn(self.stem(x))))
        features_BD: Tensor = out.mean(dim=(2, 3))
        return features_BD
