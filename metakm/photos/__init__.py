"""From photographs to a classifier: `metakm fit`, `metakm predict` and their parts."""
