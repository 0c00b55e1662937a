"""Files: written whole or not at all, locks on folders, tensors and pictures."""
