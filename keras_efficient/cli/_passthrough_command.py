"""A command whose own options end where the program it starts begins."""

import typer.core


class PassthroughCommand(typer.core.TyperCommand):
    """Leaves everything from the first word that is no option of ours, or from -m, untouched."""

    def parse_args(self, ctx, args):
        takes_value = {
            name: not getattr(option, "is_flag", False)
            for option in self.params
            for name in option.opts
        }
        place = 0
        while place < len(args) and args[place].startswith("-") and args[place] not in ("-m", "--"):
            place += 2 if takes_value.get(args[place]) else 1
        if args[place : place + 1] != ["--"]:
            args = [*args[:place], "--", *args[place:]]
        return super().parse_args(ctx, args)
