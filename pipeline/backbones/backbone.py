"""The contract of a backbone: the body of a network, everything below the growing head.

Legend: B = rows, D = width of the features
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

from torch import Tensor, nn

from pipeline.sample import InputKind, InputSpec
from pipeline.settings_section import Section
from pipeline.state import Json


class Backbone(nn.Module, ABC):
    """One body. A file `pipeline/backbones/NAME.py` holds exactly one subclass, named in `name` like its file.

    It is built under a keyed seed and, before that, once on torch's meta device to count its parameters: the
    constructor must not look at values. It draws no random numbers later (no dropout): an update is
    a function of state and records.
    """

    name: ClassVar[str]
    kinds: ClassVar[frozenset[InputKind]]  # which inputs it takes
    prefers_bfloat16: bool = False  # on CUDA, where the precision is left to us

    class Config(Section):
        """Options of the backbone; frozen. UserError from the constructor where they do not fit the input."""

    width: int  # D; set by the constructor

    def __init__(self, config: Section, spec: InputSpec) -> None:
        super().__init__()
        self.config = config
        self.spec = spec

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> features (B, D). Images come as floats in 0..1, arrays as float32, texts as int token ids."""

    def load_pretrained(self) -> None:
        """Replace the fresh weights by those of the local file that the options name, if they do."""

    @property
    def bodies(self) -> tuple[Backbone, ...]:
        """The sub-modules that it is made of; a body that is not made of several is its own one."""
        return (self,)

    @property
    def compact(self) -> Backbone:
        """The body of a network of the compact kind: its first sub-module, where it has several."""
        return self

    @property
    def resolved_options(self) -> dict[str, Json]:
        """Options that rebuild this architecture anywhere: with nothing in them that lies in a local file."""
        return cast("dict[str, Json]", self.config.model_dump(mode="json"))

    @property
    def measured_options(self) -> dict[str, Json] | None:
        """Options that rebuild it with the sizes that its layers have *now*, after channels were taken away from them
        all over; None: no options say so, and it cannot be pruned."""
        return None

    @property
    def stages(self) -> Sequence[Sequence[nn.Module]]:
        """Its convolutions and batch norms in groups that must have as many channels each, where it has some."""
        return ()

    @property
    def attention_heads(self) -> Mapping[nn.Linear, int]:
        """The projections to several heads, which keep their number when they are pruned."""
        return {}
