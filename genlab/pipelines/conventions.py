"""What users of diffusers expect of a pipeline object beside its call."""

import os
from abc import abstractmethod
from pathlib import Path
from typing import Any, NoReturn

from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from genlab.checkpoints.bundled import bundled_folder, bundled_names
from genlab.checkpoints.zoo.catalogue import entries, pulled_folder
from genlab.errors import ConfigError
from genlab.files import write_text
from genlab.generators.base import Generator
from genlab.samplers.base import AnySampler
from genlab.saving.folder import CARD, read_card


def refuse_scheduler() -> NoReturn:
    """Raise an error that says what to use instead of a pipeline's scheduler.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(
        "a GenLabPipeline has no scheduler to set; give the sampler to a call instead: "
        'pipe(sampler={"solver": "dpmpp"}), or for a scheduler of diffusers '
        'pipe(sampler=diffusers_sampler("PNDMScheduler")), a function of '
        "genlab.samplers.schedules.diffusers_scheduler"
    )


def named_folder(name: str) -> Path | None:
    """The folder of a bundled model, or of one of the zoo that is on this machine."""
    if name in bundled_names():
        return bundled_folder(name)
    return pulled_folder(name) if name in entries() else None


class PipelineConventions(DiffusionPipeline):
    """The model card that comes along, a readable scheduler, and a short description."""

    _card: str | None = None

    @abstractmethod
    def as_generator(self) -> Generator:
        """The generator behind the pipeline."""

    @property
    def scheduler(self) -> AnySampler:
        """What stands in its place: the model's own sampler, with its ``config``."""
        return self.as_generator().sampler

    @scheduler.setter
    def scheduler(self, value: Any) -> None:
        """Refuse it.

        Raises:
            ConfigError: says what to do instead.
        """
        refuse_scheduler()

    @property
    def card(self) -> str | None:
        """The text of the model card; None where the model has none."""
        if self._card is None and (name := self.config.get("_name_or_path")):
            return read_card(named_folder(str(name)) or Path(name))
        return self._card

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> None:
        """Write the folder, the model card with it; arguments as in diffusers."""
        card = self.card  # before, since the folder may be the one that it is read from
        super().save_pretrained(save_directory, *args, **kwargs)
        if card is not None:
            write_text(Path(save_directory) / CARD, card)

    def __repr__(self) -> str:
        """The model in a line."""
        return f"{type(self).__name__}({self.as_generator().describe()})"
