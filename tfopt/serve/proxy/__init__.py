"""What Ray's proxy imports from this folder alone, as `lost_replicas`: without tfopt, TensorFlow and Keras."""
