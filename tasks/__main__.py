"""List what can be run: `python -m tasks`."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent


def main() -> None:
    print("Run one of these, with --help for all it takes:\n")
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if not any(part.startswith("_") for part in parts):
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            summary = " ".join(text.split("\n\n")[0].split())
            print(f"python -m {'.'.join(['tasks', *parts]):<30} {summary}")


if __name__ == "__main__":
    main()
