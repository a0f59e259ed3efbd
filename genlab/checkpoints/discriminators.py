"""Find the discriminator that rejection sampling and latent Langevin dynamics use: a folder."""

from pathlib import Path

from genlab.checkpoints.hub.fetch import locate
from genlab.errors import CheckpointError
from genlab.generators.discriminator import GanDiscriminator


def load_discriminator(folder: Path | str) -> GanDiscriminator:
    """Load a discriminator, in float32 on the CPU.

    Args:
        folder: that ``genlab train export --discriminator``, ``genlab convert`` or ``genlab
            calibrate`` wrote; or ``owner/name`` of the hub.

    Raises:
        CheckpointError: there is no such folder, it holds no discriminator, or is damaged.
    """
    path = Path(locate(str(folder)))
    if path.is_dir():
        return GanDiscriminator.from_pretrained(path)
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file; write it to a folder with 'genlab convert {path} -o FOLDER' first, "
            "and name the folder"
        )
    raise CheckpointError(
        f"there is no discriminator's folder {path}; make one with 'genlab train export RUN "
        f"--discriminator -o {path}'"
    )
