"""The paper's supervised experiments: training from scratch, transfer learning, and the ablation of the modulator."""
