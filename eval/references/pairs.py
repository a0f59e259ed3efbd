"""A picture of samples beside the training images nearest to them."""

from PIL import Image

from genlab.data.writing.pictures import grid
from genlab.errors import EvaluationError
from genlab.eval.collect import Collected
from genlab.eval.metrics.memorisation import nearest_images
from genlab.eval.references.files import Reference

ROWS = 12
NEIGHBOURS = 5


def pairs_picture(collected: Collected, reference: Reference, title: str = "") -> Image.Image:
    """Each of the first samples on the left, the images nearest to it on its right.

    Args:
        collected: of the samples, with the rows of ``features``.
        reference: of the training images, with rows and the images themselves.
        title: a line above.

    Raises:
        EvaluationError: the images of the reference are not at hand.
    """
    rows, real = collected.features.rows["features"], reference.features.rows["features"]
    if reference.images is None or len(real) != reference.images.count:
        raise EvaluationError(
            "pictures of nearest training images need the images; give them with --reference PATH"
        )
    count = min(ROWS, len(collected.first))
    points, distances = nearest_images(rows[:count], real, min(NEIGHBOURS, len(real)))
    pixels, labels, names = [], [], []
    for row in range(count):
        neighbours = [reference.images.read(i, i + 1).images[0] for i in points[row].tolist()]
        pixels += [image.permute(1, 2, 0).numpy() for image in (collected.first[row], *neighbours)]
        labels += [row] * (1 + len(neighbours))
        names.append(f"{row}: {float(distances[row, 0]):.3g}")
    return grid(pixels, labels, names, title)
