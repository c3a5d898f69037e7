"""Lists the recipes."""

import ast
import pathlib


def main() -> None:
    """Prints the name and the first line of each recipe; imports none of them."""
    folder = pathlib.Path(__file__).parent
    for path in sorted(folder.glob("*.py")):
        if not path.name.startswith("_"):
            about = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
            print(f"python -m recipes.{path.stem:<20} {about}")
    print("\nEach takes --help.")


if __name__ == "__main__":
    main()
