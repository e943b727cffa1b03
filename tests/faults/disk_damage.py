"""What a disk may do to a snapshot after it was written."""

from __future__ import annotations

from pathlib import Path

# A deed and what it is done to: the manifest, tensors (state.safetensors and the block files), or what else is there.
DAMAGES = ("flip tensors", "flip rest", "flip manifest", "lose tensors", "lose rest", "lose manifest")


def spoil(snapshot: Path, damage: str, number: int) -> Path:
    """Flip a bit in the middle of a file, or remove it; `number` says which of several of that kind. Returns it."""
    deed, kind = damage.split()
    victims = [path for path in sorted(snapshot.rglob("*")) if path.is_file() and _kind(path) == kind]
    assert victims, f"{snapshot} has no {kind}"
    # An empty file has no bit to flip.
    victims = [path for path in victims if deed == "lose" or path.stat().st_size] or victims
    victim = victims[number % len(victims)]
    if deed == "lose":
        victim.unlink()
        return victim
    # In place: where it is linked from another snapshot, that one has the wrong bit too.
    with victim.open("r+b") as file:
        content = file.read()
        assert content, f"{victim} is empty"
        middle = len(content) // 2
        file.seek(middle)
        file.write(bytes([content[middle] ^ 1]))
    return victim


def _kind(path: Path) -> str:
    if path.name == "manifest.json":
        return "manifest"
    return "tensors" if path.suffix == ".safetensors" else "rest"
