"""All runs below a folder as one self-contained page."""
