"""Files that a search for images ignores: thumbnails, recycle bins, snapshots, hidden files."""

from pathlib import PurePath

# In lower case. Names that begin with a dot are ignored too: `._a.jpg`, `.DS_Store`, `.Trash-1000`.
IGNORED = {
    "@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@__thumb",
    "__macosx", "network trash folder", "temporary items", "icon\r",
    "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "recycler",
    "system volume information", "lost+found", "~snapshot",
}  # fmt: skip


def is_ignored(path: PurePath) -> bool:
    """Return whether a search ignores a file or folder, by its name or that of a folder around it.

    path: relative to the folder that is searched, so that this folder may have any name itself.
    """
    return any(
        part.startswith(".") or part.lower() in IGNORED for part in path.parts if part != ".."
    )
