"""What a search for images passes over: droppings of file servers, archives and file managers."""

from pathlib import PurePath

# In lower case. So are names that begin with a dot: `._a.jpg`, `.DS_Store`, `.Trash-1000`.
DROPPINGS = {
    "@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@__thumb",
    "__macosx", "network trash folder", "temporary items", "icon\r",
    "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "recycler",
    "system volume information", "lost+found", "~snapshot",
}  # fmt: skip


def is_dropping(path: PurePath) -> bool:
    """Return whether a file or folder is a thumbnail, a recycle bin, a snapshot or the like.

    path: relative to the folder that is searched, so that this folder may have any name itself.
    """
    return any(
        part.startswith(".") or part.lower() in DROPPINGS for part in path.parts if part != ".."
    )
