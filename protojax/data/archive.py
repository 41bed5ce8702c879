"""Tar files from elsewhere, unpacked where nothing can get out of the folder."""

import contextlib
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from protojax.data.source import DataError


@contextlib.contextmanager
def unpacked(path: str | Path) -> Iterator[Path]:
    """The contents of a tar file in a temporary folder, which is deleted on the way out; a folder is given as it is.

    Only files and folders are taken. A member that would land outside, a link or a device is refused before anything is
    written, not left out: an archive that tries this is not what it says.

    Yields:
      The folder; where the archive holds one folder alone, that one.

    Raises:
      DataError: there is no such file, it is no tar file, is damaged, or has a member as above.
    """
    path = Path(path)
    if path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        try:
            with tarfile.open(path) as archive:
                for member in archive:
                    _check(path, member, root)
                archive.extractall(root, filter="data")
        except FileNotFoundError:
            raise DataError(f"{path}: no such file or folder") from None
        except (tarfile.TarError, OSError, EOFError) as error:
            raise DataError(f"{path}: cannot be unpacked: {error}") from None
        inside = list(root.iterdir())
        yield inside[0] if len(inside) == 1 and inside[0].is_dir() else root


def _check(path: Path, member: tarfile.TarInfo, root: Path) -> None:
    if not (member.isfile() or member.isdir()):
        raise DataError(f"{path}: {member.name!r} is a link or a device; only files and folders are taken")
    if member.name.startswith(("/", "\\")) or not (root / member.name).resolve().is_relative_to(root):
        raise DataError(f"{path}: {member.name!r} leads out of the folder that it is unpacked into")
