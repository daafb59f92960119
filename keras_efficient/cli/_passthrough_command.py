"""`PassthroughCommand`: a command that passes the options of a program on to it."""

import typer.core


class PassthroughCommand(typer.core.TyperCommand):
    """Command whose own options end at the first argument that is not an option, or at -m.

    Everything from there on is left untouched, as if it followed a "--".
    """

    def parse_args(self, ctx, args):
        takes_value = {
            name: not getattr(option, "is_flag", False)
            for option in self.params
            for name in option.opts
        }
        end = 0
        while end < len(args) and args[end].startswith("-") and args[end] not in ("-m", "--"):
            end += 2 if takes_value.get(args[end]) else 1
        if args[end : end + 1] != ["--"]:
            args = [*args[:end], "--", *args[end:]]
        return super().parse_args(ctx, args)
