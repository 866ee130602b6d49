"""Checkpoints that are quantized already: their codes, repacked into the constants that OpenVINO keeps compressed."""
