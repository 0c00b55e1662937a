"""Files in the folder of a dataset that are not part of it."""

from __future__ import annotations

# In lower case. Made by Synology, QNAP and Samba servers, macOS archives, Windows and Linux file systems.
_MADE_BY_SYSTEMS = frozenset(
    {"@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot", "__macosx"}
    | {"$recycle.bin", "system volume information", "lost+found", "thumbs.db", "desktop.ini"}
)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or one in which a system stores thumbnails, deleted files or settings."""
    return name.startswith(".") or name.lower() in _MADE_BY_SYSTEMS
