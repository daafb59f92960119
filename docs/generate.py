"""Write the pages that follow from the source: docs/api/ and the file tree in docs/architecture.md.

python docs/generate.py            # write them
python docs/generate.py --check    # exit with 1 if one is out of date
"""

import ast
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
PACKAGE = DOCS.parent / "keras_efficient"
BEGIN, END = "<!-- tree: written by docs/generate.py -->", "<!-- /tree -->"


def summary(path: Path) -> str:
    """Return the first line of a file's docstring."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return doc.splitlines()[0] if doc else ""


def public_names(stub: Path) -> list[str]:
    """Return the names that a package's stub imports from its files, in order."""
    names = []
    for node in ast.parse(stub.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [alias.asname for alias in node.names]
    return sorted(names, key=str.lower)


def packages() -> list[str]:
    """Return the packages that have public names, in alphabetical order."""
    return sorted(stub.parent.name for stub in PACKAGE.glob("*/__init__.pyi"))


def api_page(package: str) -> str:
    """Return the page of one package: its docstring, then every public name in full."""
    folder = PACKAGE / package
    lines = [f"# keras_efficient.{package}", "", summary(folder / "__init__.py"), ""]
    for name in public_names(folder / "__init__.pyi"):
        lines += [f"::: keras_efficient.{package}.{name}", ""]
    return "\n".join(lines)


def api_index() -> str:
    """Return the page that lists the packages and the names of `keras_efficient` itself."""
    lines = [
        "# API reference",
        "",
        "Generated from the docstrings, one page per package. `ke` is `keras_efficient`.",
        "",
        "| Package | Contents |",
        "|---|---|",
    ]
    for package in packages():
        text = summary(PACKAGE / package / "__init__.py")
        lines.append(f"| [keras_efficient.{package}]({package}.md) | {text} |")
    lines += ["", "These names are also found directly in `keras_efficient`:", ""]
    for node in ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module[0] != "_":
            for alias in node.names:
                full = f"keras_efficient.{node.module}.{alias.asname}"
                lines.append(f"- [ke.{alias.asname}]({node.module}.md#{full})")
    return "\n".join([*lines, ""])


def tree() -> str:
    """Return the package tree, one line per file, from the files' first docstring lines."""
    rows = []

    def visit(folder: Path, depth: int) -> None:
        indent = "    " * depth
        rows.append((f"{indent}{folder.name}/", summary(folder / "__init__.py")))
        for path in sorted(folder.glob("*.py")):
            if path.name != "__init__.py":
                rows.append((f"{indent}    {path.name}", summary(path)))
        for child in sorted(path.parent for path in folder.glob("*/__init__.py")):
            visit(child, depth + 1)

    visit(PACKAGE, 0)
    width = max(len(name) for name, _ in rows) + 2
    lines = (f"{name:<{width}}{text}".rstrip() for name, text in rows)
    return "\n".join(["```text", *lines, "```"])


def pages() -> dict[Path, str]:
    """Return the text of every generated page by its path."""
    architecture = DOCS / "architecture.md"
    before, _, rest = architecture.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    found = {DOCS / "api" / f"{package}.md": api_page(package) for package in packages()}
    found[DOCS / "api" / "index.md"] = api_index()
    found[architecture] = f"{before}{BEGIN}\n\n{tree()}\n\n{END}{after}"
    return found


def main() -> int:
    """Write the pages, or compare them with what is there."""
    wanted = pages()
    stale = [
        path
        for path, text in wanted.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    stale += [path for path in (DOCS / "api").glob("*.md") if path not in wanted]
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path.relative_to(DOCS.parent)} is out of date: run `python docs/generate.py`")
        return 1 if stale else 0
    for path in stale:
        if path in wanted:
            path.parent.mkdir(exist_ok=True)
            path.write_text(wanted[path], encoding="utf-8")
        else:
            path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
