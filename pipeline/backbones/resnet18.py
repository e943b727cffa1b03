"""ResNet-18 for small images, the network of DER++'s experiments.

He et al. 2016 (arXiv:1512.03385) with the stem of its CIFAR networks: one 3x3 convolution of stride 1, no pooling.
Legend: B = rows, C = channels, H/W = height/width, D = 8 * width
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.backbones.backbone import Backbone
from pipeline.sample import InputSpec
from pipeline.settings_section import Section, fixed
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
    """Four stages of two blocks with width, 2, 4 and 8 times width channels; features after global average pooling."""

    name = "resnet18"
    kinds = frozenset({"image"})
    prefers_bfloat16 = True

    class Config(Section):
        width: int = fixed(64, ge=1, le=4096, why="channels of the first stage")

    def __init__(self, config: Section, spec: InputSpec) -> None:
        super().__init__(config, spec)
        assert isinstance(config, ResNet18.Config)
        channels, height, width = spec.shape
        if min(height, width) < _SMALLEST_SIDE:
            raise UserError(
                f"images of {height}x{width} are too small for backbone 'resnet18': set input.shape to "
                f"{_SMALLEST_SIDE}x{_SMALLEST_SIDE} at least, or network.backbone to mlp"
            )
        self.stem = nn.Conv2d(channels, config.width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(config.width)
        blocks: list[nn.Module] = []
        channels_in = config.width
        for stage in range(4):
            channels_out = config.width * 2**stage
            blocks += [_Block(channels_in, channels_out, 1 if stage == 0 else 2), _Block(channels_out, channels_out, 1)]
            channels_in = channels_out
        self.blocks = nn.Sequential(*blocks)
        self.width = channels_in

    def forward(self, x: Tensor) -> Tensor:
        out = self.blocks(F.relu(self.bn(self.stem(x))))
        features_BD: Tensor = out.mean(dim=(2, 3))
        return features_BD
