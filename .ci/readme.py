"""Turn the README's examples into a script: readme.py README.md FOLDER writes FOLDER/commands.sh.

Blocks fenced as ``bash`` and ``python`` are run, in their order; ``sh`` and ``text`` blocks are for
reading only (they need a clone, much time or a file that is not there).
"""

import re
import sys
from pathlib import Path

FENCE = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def main(readme: str, folder: str) -> None:
    """Write the script, which stops at the first command that fails."""
    lines = ["set -euxo pipefail"]
    blocks = FENCE.findall(Path(readme).read_text(encoding="utf-8"))
    if not any("genlab sample" in code for _, code in blocks):
        sys.exit(f"{readme} has no bash block with 'genlab sample': nothing would be checked")
    for number, (language, code) in enumerate(blocks):
        if language == "python":
            example = Path(folder, f"example_{number}.py")
            example.write_text(code, encoding="utf-8")
            lines.append(f"python -W error::DeprecationWarning:__main__ {example.name}")
        else:
            lines.append(code)
    Path(folder, "commands.sh").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
