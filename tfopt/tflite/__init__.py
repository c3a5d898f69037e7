"""Export to LiteRT (.tflite), running the files, and proof that they compute what the model computes."""
