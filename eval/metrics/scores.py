"""What a metric declares of its scores, and how that is read without importing the metric."""

import ast
from dataclasses import KW_ONLY, dataclass
from functools import cache
from importlib.abc import InspectLoader
from importlib.util import find_spec

from genlab.errors import ConfigError


@dataclass(frozen=True)
class ScoreInfo:
    """One score that a metric gives.

    Attributes:
        name: plain name: ``fd``, ``precision``.
        lower_is_better: None where neither way is better: the score is shown and not ranked.
        official_name: its name when, and only when, the extractor is the official Inception network
            (``fid``); None is the plain one.
        detail: whether it only completes another score (its spread over chunks, a mean of two
            others): tables leave it out, CSV has it.

    Raises:
        ConfigError: a name is empty, or holds the brackets that an extractor's name stands in.
    """

    name: str
    _: KW_ONLY
    lower_is_better: bool | None
    official_name: str | None = None
    detail: bool = False

    def __post_init__(self) -> None:
        for name in self.names:
            if not name or not name.isprintable() or set(name) & set("[]"):
                raise ConfigError(
                    f"a score's name must be printable text without brackets, got {name!r}"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the score, the official one first."""
        if self.official_name in (None, self.name):
            return (self.name,)
        return (self.official_name, self.name)

    def full_name(self, extractor_name: str, official: bool) -> str:
        """The name under which a score made with an extractor is shown and recorded.

        >>> ScoreInfo("fd", lower_is_better=True, official_name="fid").full_name("inception", True)
        'fid'
        >>> ScoreInfo("fd", lower_is_better=True).full_name("cnn-fmnist", official=False)
        'fd[cnn-fmnist]'
        """
        return self.names[0] if official else f"{self.name}[{extractor_name}]"


def scores_in_source(module: str, class_name: str) -> tuple[ScoreInfo, ...] | None:
    """The ``scores`` that a class declares, read from its source.

    A metric's module imports torch, and that takes longer than all that the leaderboard does. So a
    plain declaration is read without running the module, as setuptools reads ``attr:``.

    Args:
        module: where the class is defined; the packages above it are imported.
        class_name: of the class.

    Returns:
        None where there is no source, or ``scores`` is no tuple of plain ``ScoreInfo(...)``: then
        the class itself must be asked.

    Raises:
        ImportError: a package above the module cannot be imported.
        SyntaxError: the source is no Python.
    """
    for statement in _classes(module).get(class_name, ()):
        match statement:
            case (
                ast.AnnAssign(target=ast.Name(id="scores"), value=ast.Tuple(elts=calls))
                | ast.Assign(targets=[ast.Name(id="scores")], value=ast.Tuple(elts=calls))
            ):
                return _evaluated(calls)
    return None


@cache
def _classes(module: str) -> dict[str, list[ast.stmt]]:
    """The classes of a module by name: their bodies."""
    spec = find_spec(module)
    loader = None if spec is None else spec.loader
    source = loader.get_source(module) if isinstance(loader, InspectLoader) else None
    body = ast.parse(source or "").body
    return {node.name: node.body for node in body if isinstance(node, ast.ClassDef)}


def _evaluated(calls: list[ast.expr]) -> tuple[ScoreInfo, ...] | None:
    """The values of calls of `ScoreInfo`, or None if one of them is anything else."""
    scores = []
    for call in calls:
        match call:
            case ast.Call(func=ast.Name(id="ScoreInfo"), args=positional, keywords=keywords):
                try:
                    values = [ast.literal_eval(value) for value in positional]
                    named = {str(k.arg): ast.literal_eval(k.value) for k in keywords}
                    scores.append(ScoreInfo(*values, **named))
                except (TypeError, ValueError):  # the class itself raises it with its place
                    return None
            case _:
                return None
    return tuple(scores)
