"""Everything below a folder, before and after, to be compared."""

from __future__ import annotations

import stat


def tree(root):
    """Kind, times and content of everything below a folder."""
    entries = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = (
            path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
        )
        times = None if path.is_dir() and not path.is_symlink() else status.st_mtime_ns
        entries[path.relative_to(root).as_posix()] = (
            stat.S_IMODE(status.st_mode),
            times,
            content,
        )
    return entries


def same(before, after, names):
    return {name: before[name] for name in names} == {name: after.get(name) for name in names}
