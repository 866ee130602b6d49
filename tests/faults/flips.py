"""One changed byte, at 1,000 places of an artifact, each of which ``verify`` must find; and files cut short.

    PYTHONPATH=tests python tests/faults/flips.py --count 1000 --state points.jsonl

Places are spread over all files by a seed: their first and last bytes, and others at random.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

from interception import Ended, run_here
from points import Point, Points, table
from scenes import TEXT

SEED = 29
FLIP, CUT = "C4: a bit flips", "C4: a file is cut"
SHARES = (0, 1 / 64, 0.5, 63 / 64)
"""Of a file, which are left of it."""
NOT_PROMISED = frozenset({"eval.json", "README.md"})
"""Reports and the card are no part of what the manifest promises; the manifest itself is."""


def artifact(place: Path) -> Path:
    """One with all reports that a directory can hold."""
    from tiny_models import build_checkpoint

    model, made = build_checkpoint(place / "model", num_hidden_layers=1), place / "artifact"
    text = ("--dataset", str(TEXT), "--num-windows", "1", "--seq-len", "16")
    run_here(["compress", str(model), "-r", "int4", "--set", "weights.group_size=32", "-o", str(made)])
    run_here(["eval", str(made), "--reference", str(model), *text])
    run_here(["card", str(made)])
    return made


def places(directory: Path, count: int) -> list[tuple[Path, int]]:
    """Files and offsets in them."""
    chance = random.Random(SEED)
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.stat().st_size)
    files = [path for path in files if path.name not in NOT_PROMISED]
    chosen = [(path, offset) for path in files for offset in (0, path.stat().st_size - 1)]
    sizes = [path.stat().st_size for path in files]
    while len(chosen) < count:
        # Half of them in files of equal chance, or all would fall into the weights.
        weights = sizes if len(chosen) % 2 else None
        (path,) = chance.choices(files, weights)
        chosen.append((path, chance.randrange(path.stat().st_size)))
    return chosen[:count]


def verified(directory: Path) -> Ended:
    return run_here(["verify", str(directory)])


def flipped(directory: Path, path: Path, offset: int, at: int) -> Point:
    """Change one bit of one byte, and put it back."""
    with path.open("r+b") as file:
        file.seek(offset)
        (old,) = file.read(1)
        file.seek(offset)
        file.write(bytes([old ^ 1 << offset % 8]))
        file.flush()
        ended = verified(directory)
        file.seek(offset)
        file.write(bytes([old]))
    return _judged(FLIP, at, directory, path, offset, ended)


def cut(directory: Path, path: Path, size: int, at: int) -> Point:
    """Cut a file, and put it back."""
    content = path.read_bytes()
    path.write_bytes(content[:size])
    ended = verified(directory)
    path.write_bytes(content)
    return _judged(CUT, at, directory, path, size, ended)


def _judged(fault: str, at: int, directory: Path, path: Path, offset: int, ended: Ended) -> Point:
    name = path.relative_to(directory).as_posix()
    wrong = []
    if ended.returncode == 0:
        wrong.append("verify found nothing")
    elif ended.returncode != 4:
        wrong.append(f"exit code {ended.returncode}")
    elif path.name != "llmcompress.json" and path.name not in ended.stdout + ended.stderr:
        wrong.append("the file is not named")
    return Point("verify", fault, at, f"{name} at {offset}", ended.returncode, [], [], wrong)


def main() -> None:
    """Flip and cut, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="of flips")
    parser.add_argument(
        "--state", type=Path, help="file of points, a line of JSON each, for a later call to go on with"
    )
    args = parser.parse_args()
    points = Points(args.state)
    with tempfile.TemporaryDirectory(prefix="llmcompress-faults-") as folder:
        made = artifact(Path(folder))
        if verified(made).returncode:
            raise SystemExit("the artifact does not verify undisturbed")
        for at, (path, offset) in enumerate(places(made, args.count)):
            if not points.has_survived("verify", FLIP, at):
                points.add(flipped(made, path, offset, at))
        files = sorted(each for each in made.rglob("*") if each.is_file() and each.stat().st_size > 1)
        lengths = [(path, share) for path in files if path.name not in NOT_PROMISED for share in SHARES]
        for at, (path, share) in enumerate(lengths):
            if not points.has_survived("verify", CUT, at):
                points.add(cut(made, path, int(share * path.stat().st_size), at))
        if verified(made).returncode:
            raise SystemExit("the artifact was not put back")
    print(table(points.all))


if __name__ == "__main__":
    main()
