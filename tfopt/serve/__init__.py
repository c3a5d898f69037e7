"""Answers requests with .tflite files, Keras models and SavedModels: on one machine, or on many through Ray."""
