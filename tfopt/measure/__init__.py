"""What a .tflite file weighs, holds and takes to run."""
