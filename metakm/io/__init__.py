"""Files: atomic writes, locks on folders, tensor files and figures."""
