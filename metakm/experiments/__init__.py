"""The paper's supervised experiments: training from scratch, transfer learning, and the modulator's construction."""
