"""Channel pruning: filters that are really gone, so that the model is smaller and faster."""
