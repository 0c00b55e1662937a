"""Task packs on the command line."""
