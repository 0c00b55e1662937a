"""What lies among the files of a data set without being part of it."""

from __future__ import annotations

# In lower case. Synology, QNAP and Samba servers, macOS's archives, Windows and Linux file systems make them.
_MADE_BY_SYSTEMS = frozenset(
    {"@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot", "__macosx"}
    | {"$recycle.bin", "system volume information", "lost+found", "thumbs.db", "desktop.ini"}
)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or one in which a system keeps thumbnails, deleted files or settings."""
    return name.startswith(".") or name.lower() in _MADE_BY_SYSTEMS
