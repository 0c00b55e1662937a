"""From photographs to a classifier: `metakm fit`, `metakm predict` and what they are made of."""
