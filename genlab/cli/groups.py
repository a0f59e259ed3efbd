"""A command group with a default command: ``genlab eval SOURCE``, ``genlab train CONFIG``."""

from typing import Any

import click
from click.shell_completion import CompletionItem


class DefaultGroup(click.Group):
    """A group whose default command takes every word that names none of its commands.

    Args:
        default: the command.
        listed: whether help and Tab completion show the group and its commands, the default among
            them; else they show the default command alone, under the group's name.
    """

    def __init__(
        self, *args: Any, default: click.Command, listed: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.default, self.listed = default, listed
        if listed:
            self.add_command(default)

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Hand everything that is not the group's own to the default command."""
        own = {*self.commands, "-h", "--help"} if self.listed else self.commands
        if args[0] in own if args else self.listed:
            return super().make_context(info_name, args, parent, **extra)
        name = f"{info_name} {self.default.name}" if self.listed else info_name
        return self.default.make_context(name, args, parent, **extra)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Offer the default command's first argument beside the commands."""
        first = self.default.params[0].shell_complete(ctx, incomplete)
        return [*super().shell_complete(ctx, incomplete), *first]
