"""Compare the wheel with the checkout: all modules, presets and bundled files, nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

TOP = {name: f"genlab/{name}" for name in ("samplers", "eval", "configs")} | {"genlab": "genlab"}
NOT_SHIPPED = {".pyc"}
LARGEST = 70_000_000  # bytes; what a package index takes without asking is 100 MB


def main(wheel: str) -> None:
    """Stop with a sentence if something is missing from the wheel or should not be in it."""
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    tracked = subprocess.run(
        ["git", "ls-files", *TOP], capture_output=True, text=True, check=True
    ).stdout.split("\n")
    wanted = {_place(name) for name in tracked if name and Path(name).suffix not in NOT_SHIPPED}
    for what, names in (("is missing", wanted - found), ("has no business", found - wanted)):
        if names:
            sys.exit(f"{wheel}: {what} there: {', '.join(sorted(names))}")
    size = Path(wheel).stat().st_size
    if size > LARGEST:
        sys.exit(f"{wheel} has {size} bytes, more than {LARGEST}")
    print(f"{wheel}: {len(found)} files, {size / 1e6:.1f} MB")


def _place(name: str) -> str:
    first, _, rest = name.partition("/")
    return f"{TOP[first]}/{rest}"


if __name__ == "__main__":
    main(sys.argv[1])
